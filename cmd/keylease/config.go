package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/providers/structs"
	"github.com/knadh/koanf/v2"
	"github.com/rs/zerolog"

	"keylease/internal/federation"
	"keylease/internal/passphrase"
	"keylease/internal/strictyaml"
	"keylease/internal/ttl"
	"keylease/server"
)

// Config is all there is to configure. Each layer overrides the one before: the defaults, keylease.yaml, KEYLEASE_*
// variables (LOG__LEVEL for log.level), flags. Paths in the file may begin with ~/ and are otherwise relative to the
// file's folder.
type Config struct {
	HTTP           string       `koanf:"http" yaml:"http"`                     // address of /mcp and /sse, or "off"
	AllowedOrigins []string     `koanf:"allowedOrigins" yaml:"allowedOrigins"` // web pages that may call, as in https://tools.example; none by default
	AllowedHosts   []string     `koanf:"allowedHosts" yaml:"allowedHosts"`     // names by which it may be called, beside its address, loopback and the resource's
	TLS            TLSConfig    `koanf:"tls" yaml:"tls"`                       // none: plain HTTP, on loopback alone
	Data           string       `koanf:"data" yaml:"data"`                     // folder that holds the store
	RootKeyFile    string       `koanf:"rootKeyFile" yaml:"rootKeyFile"`       // "": where it was when the store was made, else root.key beside this file
	PolicyFile     string       `koanf:"policyFile" yaml:"policyFile"`         // "": policy.yaml beside this file
	Anchor         string       `koanf:"anchor" yaml:"anchor"`                 // folder of the anchors, never in the data folder; "": that of this file
	Socket         SocketConfig `koanf:"socket" yaml:"socket"`
	Admin          AdminConfig  `koanf:"admin" yaml:"admin"`
	Proxy          ProxyConfig  `koanf:"proxy" yaml:"proxy"`
	Log            LogConfig    `koanf:"log" yaml:"log"`
	Audit          AuditConfig  `koanf:"audit" yaml:"audit"`
	Grace          string       `koanf:"grace" yaml:"grace"`       // how long leases outlive the session they were taken in
	IdleStop       string       `koanf:"idleStop" yaml:"idleStop"` // how long a daemon that was started automatically stays with nothing to do

	Identities IdentitiesConfig `koanf:"identities" yaml:"identities"`
	Limits     Limits           `koanf:"limits" yaml:"limits"`

	Approvals ApprovalsConfig `koanf:"-" yaml:"approvals"` // from the file alone

	// Who is let in by somebody else's word. These come from the file alone.
	Resource     string                   `koanf:"-" yaml:"resource"` // our name in tokens of other issuers, as https://keys.example.com/mcp
	Issuers      []federation.Issuer      `koanf:"-" yaml:"issuers"`
	Certificates []federation.Certificate `koanf:"-" yaml:"certificates"`
}

// Limits is what callers may ask of the daemon: see server.Limits. 0 is no limit.
type Limits struct {
	CallRate         float64 `koanf:"callRate" yaml:"callRate"`
	CallBurst        int     `koanf:"callBurst" yaml:"callBurst"`
	FailureRate      float64 `koanf:"failureRate" yaml:"failureRate"`
	FailureBurst     int     `koanf:"failureBurst" yaml:"failureBurst"`
	LocalConnections int     `koanf:"localConnections" yaml:"localConnections"`
	HTTPConnections  int     `koanf:"httpConnections" yaml:"httpConnections"`
}

// IdentitiesConfig is about who is lent to at all.
type IdentitiesConfig struct {
	Declared string `koanf:"declared" yaml:"declared"` // allow or deny callers whose name nothing proves
}

// ApprovalsConfig is about questions to people.
type ApprovalsConfig struct {
	Notify []string `koanf:"-" yaml:"notify"` // a program that is told of each new question, and its arguments; never a shell's words
}

// LogConfig is about the daemon's log on stderr.
type LogConfig struct {
	Level string `koanf:"level" yaml:"level"` // debug, info, warn or error
}

func defaults() Config {
	return Config{HTTP: "127.0.0.1:8700", AllowedOrigins: []string{}, AllowedHosts: []string{}, Socket: SocketConfig{Allow: AllowConfig{UIDs: []strictyaml.Name{}, Groups: []strictyaml.Name{}}}, Admin: AdminConfig{UIDs: []strictyaml.Name{}},
		Log: LogConfig{Level: "info"}, Grace: "1m", IdleStop: "30m", Identities: IdentitiesConfig{Declared: allow},
		Limits: Limits(server.DefaultLimits())}
}

// What identities.declared can be.
const (
	allow = "allow"
	deny  = "deny"
)

// flags are those of all commands, and those that override Config.
type flags struct {
	config, socket      string
	data, http, rootKey string
}

// settings is Config understood: what a command works with.
type settings struct {
	Config
	paths           server.Paths
	system          *server.System // nil: own-user mode
	home            string
	configFile      string
	policyNamed     string // what named the policy file, as an error begins; "": the default path, where none needs to be
	explicitKey     bool   // the root key's file was named by a flag, the environment or keylease.yaml
	grace, idleStop time.Duration
	keepTrail       time.Duration // 0: for ever
	level           zerolog.Level
	passphrase      passphrase.Hash
}

// pathKeys are the keys whose values are paths.
var pathKeys = [...]string{"data", "rootKeyFile", "policyFile", "anchor", "socket.path", "socket.admin", "tls.cert", "tls.key", "tls.clientCA", "proxy.ca"}

// notConfig are the variables that are read elsewhere, or by the daemon that a store's key source makes read them.
var notConfig = [...]string{"KEYLEASE_TOKEN", "KEYLEASE_AS", "KEYLEASE_SOCKET", "KEYLEASE_ROOT_KEY"}

// fileOnly are the keys that no variable or flag can set.
var fileOnly = [...]string{"resource", "issuers", "certificates", "approvals", "approvals.notify", "admin.passphrase"}

// settings reads the configuration. Of an environment that is not the operator's own (useEnv false: a relay's comes
// from an MCP client's project file, a daemon's may be anybody's) nothing is taken.
func (a *app) settings(useEnv bool) (settings, error) {
	home, err := homeFolder(a.env)
	if err != nil {
		return settings{}, err
	}
	s := settings{home: home}
	file, err := configFile(a.flags.config, home)
	if err != nil {
		return s, err
	}
	s.configFile, s.paths.Config = file, filepath.Dir(file)
	k := koanf.New(".")
	if err := k.Load(structs.Provider(defaults(), "koanf"), nil); err != nil {
		return s, fmt.Errorf("setting the defaults: %w", err)
	}
	from := sources{}
	written, err := loadFile(k, file, a.flags.config != "", from)
	if err != nil {
		return s, err
	}
	fromFile := func(p string) (string, error) { return resolve(p, home, s.paths.Config) }
	for _, key := range pathKeys {
		path, err := fromFile(k.String(key))
		if err != nil {
			return s, usagef("", "%s: %s: %s", file, key, err)
		}
		_ = k.Set(key, path)
	}
	for i := range written.Issuers {
		path := &written.Issuers[i].CAFile
		if *path, err = fromFile(*path); err != nil {
			return s, usagef("", "%s: caFile: %s", file, err)
		}
	}
	if useEnv {
		if err := a.loadEnv(k, home, from); err != nil {
			return s, err
		}
	}
	if err := a.loadFlags(k, from); err != nil {
		return s, err
	}
	if err := k.Unmarshal("", &s.Config); err != nil {
		return s, usagef("", "the configuration does not fit together: %s", err)
	}
	s.Resource, s.Issuers, s.Certificates = written.Resource, written.Issuers, written.Certificates
	s.Approvals, s.Admin.Passphrase = written.Approvals, written.Admin.Passphrase
	return s, s.understand(a.flags.socket, from)
}

// sources says where the value of a key comes from, as an error begins: a line of the file, a variable or a flag.
type sources map[string]string

func (f sources) fault(key, hint, format string, args ...any) error {
	where := f[key]
	if where == "" {
		where = key
	}
	return usagef(hint, "%s: %s", where, fmt.Sprintf(format, args...))
}

func (s *settings) understand(socket string, from sources) (err error) {
	s.explicitKey = s.RootKeyFile != ""
	if s.Data == "" {
		s.Data = defaultData(s.home)
	}
	if s.Anchor == s.Data || strings.HasPrefix(s.Anchor, s.Data+"/") {
		return from.fault("anchor", "choose a folder that is not restored together with it", "%s lies in the data folder, and would be rolled back with it", terminal(s.Anchor))
	}
	s.policyNamed = from["policyFile"]
	if s.PolicyFile == "" {
		s.PolicyFile = filepath.Join(s.paths.Config, "policy.yaml")
	}
	s.paths.Data = s.Data
	if s.paths.Socket, err = absolute(socket); err != nil {
		return err
	}
	if s.grace, err = ttl.Parse(s.Grace); err != nil {
		return from.fault("grace", unitHint(s.Grace), "%s", err)
	}
	if s.idleStop, err = ttl.Parse(s.IdleStop); err != nil {
		return from.fault("idleStop", unitHint(s.IdleStop), "%s", err)
	}
	if err := s.understandAudit(from); err != nil {
		return err
	}
	limits := map[string]float64{"callRate": s.Limits.CallRate, "callBurst": float64(s.Limits.CallBurst),
		"failureRate": s.Limits.FailureRate, "failureBurst": float64(s.Limits.FailureBurst),
		"localConnections": float64(s.Limits.LocalConnections), "httpConnections": float64(s.Limits.HTTPConnections)}
	for _, key := range slices.Sorted(maps.Keys(limits)) {
		if n := limits[key]; !(n >= 0 && n <= 1e9) {
			return from.fault("limits."+key, "write 0 for no limit", "%v is out of range", n)
		}
	}
	levels := []string{"debug", "info", "warn", "error"}
	if !slices.Contains(levels, s.Log.Level) {
		return from.fault("log.level", "", "%q is no level: use one of %s", terminal(s.Log.Level), strings.Join(levels, ", "))
	}
	if d := s.Identities.Declared; d != allow && d != deny {
		return from.fault("identities.declared", "", "%q is neither allow nor deny", terminal(d))
	}
	if err := s.checkDoor(from); err != nil {
		return err
	}
	if err := s.checkProxy(from); err != nil {
		return err
	}
	for _, o := range s.AllowedOrigins {
		if hint, ok := checkOrigin(o); !ok {
			return from.fault("allowedOrigins", hint, "%q is not an origin, as browsers send it", terminal(o))
		}
	}
	if s.level, err = zerolog.ParseLevel(s.Log.Level); err != nil {
		return err
	}
	if err := s.understandApprovals(from); err != nil {
		return err
	}
	return s.understandSystem(from)
}

// unitHint is for a duration that is a bare number; "" for any other.
func unitHint(text string) string {
	if _, err := strconv.ParseUint(text, 10, 32); err != nil {
		return ""
	}
	return "write it with a unit, as in " + text + "s or " + text + "m"
}

// checkOrigin says whether a browser could send this origin: scheme and host in lower case, a port, and nothing else.
func checkOrigin(s string) (hint string, ok bool) {
	u, err := url.Parse(s)
	switch {
	case err == nil && u.Scheme != "" && u.Host != "" && s == strings.ToLower(u.Scheme+"://"+u.Host):
		return "", true
	case err == nil && u.Scheme != "" && u.Host != "":
		return "write " + terminal(strings.ToLower(u.Scheme+"://"+u.Host)), false
	}
	return "write it as in https://tools.example or http://localhost:3000", false
}

// bytesProvider is a file that was read and checked already.
type bytesProvider []byte

func (b bytesProvider) ReadBytes() ([]byte, error) { return b, nil }
func (b bytesProvider) Read() (map[string]any, error) {
	return nil, errors.New("a file is read as bytes")
}

// loadFile adds keylease.yaml, if it is there, and returns it as written. One that was named and is not there is a
// mistake, unless only its folder was meant.
func loadFile(k *koanf.Koanf, file string, named bool, from sources) (written Config, err error) {
	data, err := readTrusted(file, strictyaml.MaxSize+1, 0o022)
	if errors.Is(err, fs.ErrNotExist) && (!named || filepath.Base(file) == "keylease.yaml") {
		return written, nil
	}
	if err != nil {
		return written, usagef("", "reading the configuration: %s", err)
	}
	if blank(data) {
		return written, nil
	}
	doc := strictyaml.Open(file, data)
	doc.Decode(&written)
	written.federation().Check(func(at []any, format string, args ...any) { doc.Faultf(at, format, args...) })
	if err := doc.Err(); err != nil {
		return written, durations(err)
	}
	for _, key := range append(k.Keys(), fileOnly[:]...) {
		var path strictyaml.Path
		for _, name := range strings.Split(key, ".") {
			path = path.Join(name)
		}
		if doc.Has(path) {
			from[key] = fmt.Sprintf("%s:%d: %s", file, doc.Line(path), key)
		}
	}
	err = k.Load(bytesProvider(data), yaml.Parser())
	for _, key := range fileOnly {
		k.Delete(key)
	}
	return written, err
}

// durations says of a length of time that is a bare number what it lacks: quotes would not help.
func durations(err error) error {
	var faults strictyaml.Faults
	if !errors.As(err, &faults) {
		return err
	}
	for i, f := range faults {
		for _, key := range [...]string{"grace", "idleStop", "keep"} {
			if strings.HasPrefix(f.Message, key+" must be text") {
				faults[i].Message = key + " is a length of time: write it with a unit, as in 5s or 5m"
			}
		}
	}
	return faults
}

// blank says that a file holds comments at most: nothing has to be configured.
func blank(data []byte) bool {
	for line := range bytes.Lines(data) {
		if line = bytes.TrimSpace(line); len(line) > 0 && line[0] != '#' && string(line) != "---" {
			return false
		}
	}
	return true
}

func (a *app) loadFlags(k *koanf.Koanf, from sources) error {
	set := map[string]any{}
	for key, path := range map[string]string{"data": a.flags.data, "rootKeyFile": a.flags.rootKey} {
		if path == "" {
			continue
		}
		abs, err := absolute(path)
		if err != nil {
			return err
		}
		set[key] = abs
	}
	if a.flags.http != "" {
		set["http"], from["http"] = a.flags.http, "--http"
	}
	return k.Load(confmap.Provider(set, "."), nil)
}
