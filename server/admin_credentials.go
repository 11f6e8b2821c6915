package server

import (
	"keylease/internal/credtype"
	"keylease/internal/lease"
	"keylease/internal/secret"
)

func (a admin) credentials(c call) (any, error) {
	list := a.Broker.Credentials(c.URL.Query().Get("match"))
	if list == nil {
		list = []lease.CredentialInfo{}
	}
	return map[string]any{"credentials": list}, nil
}

func (a admin) credential(c call) (any, error) { return a.Broker.Credential(c.PathValue("name")) }

func (a admin) put(c call) (any, error) {
	var item CredentialItem
	if err := c.read(&item); err != nil {
		return nil, err
	}
	n := item.taken()
	defer n.Value.Wipe()
	return a.Broker.Put(c.Context(), c.admin, n)
}

func (a admin) rotate(c call) (any, error) {
	var q rotateRequest
	if err := c.read(&q); err != nil {
		return nil, err
	}
	value := secret.New(q.Value)
	defer value.Wipe()
	return a.Broker.Rotate(c.Context(), c.admin, c.PathValue("name"), value, q.RevokeLeases)
}

func (a admin) revoke(c call) (any, error) {
	return a.Broker.RevokeCredential(c.Context(), c.admin, c.PathValue("name"))
}

func (a admin) remove(c call) (any, error) {
	return struct{}{}, a.Broker.Remove(c.Context(), c.admin, c.PathValue("name"))
}

func (a admin) seed(c call) (any, error) {
	var q seedRequest
	if err := c.read(&q); err != nil {
		return nil, err
	}
	items := make([]lease.SeedItem, len(q.Items))
	for i, item := range q.Items {
		items[i] = item.Seed()
		defer items[i].Value.Wipe()
	}
	results, err := a.Broker.Seed(c.Context(), c.admin, items, q.Force)
	if err != nil {
		return nil, err
	}
	return map[string]any{"results": results}, nil
}

// taken hands the value's bytes over.
func (i CredentialItem) taken() lease.NewCredential {
	return lease.NewCredential{Name: i.Name, Type: i.Type, Value: secret.New(i.Value), Metadata: i.Metadata,
		Policy: i.Policy, Expose: i.Expose, Upstream: i.Upstream}
}

// Seed is the item as the Broker takes it. It takes over the value's bytes.
func (i CredentialItem) Seed() lease.SeedItem {
	return lease.SeedItem{NewCredential: i.taken(), HasValue: i.HasValue, Line: i.Line}
}

// MaxValue is the longest value in bytes, for whoever reads one before it is sent.
const MaxValue = credtype.MaxValue
