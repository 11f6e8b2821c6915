package tools

import (
	"encoding/json"
	"maps"
	"slices"
	"strconv"
)

// appendJSON is json.Marshal of r, byte for byte: a page has fifty credentials of a dozen members each, and to go over
// them by reflection took as long as all the rest of the call.
func (r listResult) appendJSON(b []byte) []byte {
	b = append(b, `{"credentials":`...)
	b = appendList(b, r.Credentials, appendListed)
	if r.NextCursor != "" {
		b = appendString(append(b, `,"next_cursor":`...), r.NextCursor)
	}
	return append(b, '}')
}

func appendListed(b []byte, l listed) []byte {
	b = appendString(append(b, `{"name":`...), l.Name)
	b = appendString(append(b, `,"type":`...), l.Type)
	b = appendString(append(b, `,"state":`...), l.State)
	b = appendStrings(append(b, `,"metadata":`...), l.Metadata)
	b = appendList(append(b, `,"deliveries":`...), l.Deliveries, appendString)
	if l.Usual != "" {
		b = appendString(append(b, `,"default_delivery":`...), l.Usual)
	}
	b = appendString(append(b, `,"default_ttl":`...), l.DefaultTTL)
	b = appendString(append(b, `,"max_ttl":`...), l.MaxTTL)
	b = append(b, `,"max_leases":`...)
	if l.MaxLeases == nil {
		b = append(b, "null"...)
	} else {
		b = strconv.AppendInt(b, int64(*l.MaxLeases), 10)
	}
	b = strconv.AppendInt(append(b, `,"leases_in_use":`...), int64(l.LeasesInUse), 10)
	b = appendString(append(b, `,"approval":`...), l.Approval)
	b = strconv.AppendBool(append(b, `,"rotation_due":`...), l.RotationDue)
	b = appendList(append(b, `,"your_leases":`...), l.YourLeases, appendOwn)
	return append(b, '}')
}

func appendOwn(b []byte, l ownLease) []byte {
	b = appendString(append(b, `{"lease_id":`...), l.LeaseID)
	b = appendString(append(b, `,"expires_at":`...), l.ExpiresAt)
	b = appendString(append(b, `,"delivery":`...), l.Delivery)
	return append(b, '}')
}

func appendList[T any](b []byte, all []T, one func([]byte, T) []byte) []byte {
	if all == nil {
		return append(b, "null"...)
	}
	b = append(b, '[')
	for i, v := range all {
		if i > 0 {
			b = append(b, ',')
		}
		b = one(b, v)
	}
	return append(b, ']')
}

func appendStrings(b []byte, m map[string]string) []byte {
	if m == nil {
		return append(b, "null"...)
	}
	var room [8]string // more than nearly every credential has
	names := slices.AppendSeq(room[:0], maps.Keys(m))
	slices.Sort(names)
	b = append(b, '{')
	for i, name := range names {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(append(appendString(b, name), ':'), m[name])
	}
	return append(b, '}')
}

// appendString leaves what is not plain to encoding/json.
func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			text, _ := json.Marshal(s) // a string: cannot fail
			return append(b, text...)
		}
	}
	return append(append(append(b, '"'), s...), '"')
}
