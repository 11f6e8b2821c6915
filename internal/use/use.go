// Package use says how a credential is used by somebody who never sees it: in which variable a program gets it (Expose),
// and to which service, in which header and for which requests it is sent (Upstream). Its rule: what is matched is
// what is sent. A request is read into one form, once; anything that could be read in two ways is refused.
package use

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"keylease/internal/strictyaml"
)

// Expose says how a program that runs under a lease gets the secret.
type Expose struct {
	Env      string              `yaml:"env" json:"env,omitempty"`           // the variable; "": see EnvName
	Commands map[string][]string `yaml:"commands" json:"commands,omitempty"` // by name, for `keylease run NAME`: program and arguments
}

// Upstream says where a secret is sent by the proxy. Service or URL is set, or both (a service hosted elsewhere).
type Upstream struct {
	Service string `yaml:"service" json:"service,omitempty"` // a name in the catalogue
	URL     string `yaml:"url" json:"url,omitempty"`         // https; http only as written here
	Header  string `yaml:"header" json:"header,omitempty"`   // "Authorization: Bearer {value}"; "Authorization: Basic user:{value}" is encoded by keylease
	// Requests, as in "POST /v1/chat/*". Allow takes the place of the service's own list; Deny beats it.
	Allow []string `yaml:"allow" json:"allow,omitempty"`
	Deny  []string `yaml:"deny" json:"deny,omitempty"`
	// Headers that are dropped unless named here: of requests, those that switch the tenant; of answers, Set-Cookie.
	AllowHeaders    []string `yaml:"allowHeaders" json:"allowHeaders,omitempty"`
	ResponseHeaders []string `yaml:"responseHeaders" json:"responseHeaders,omitempty"`
	Rate            string   `yaml:"rate" json:"rate,omitempty"`       // requests of one lease, as in 10/s, 300/m, 1000/h; "": no limit
	Private         bool     `yaml:"private" json:"private,omitempty"` // the host in URL is a name with a private address
}

// Limits of what an admin may write.
const (
	MaxArgs     = 64       // arguments of a command, its program included
	MaxArgBytes = 16 << 10 // of a command in all
	MaxCommands = 64
	MaxRules    = 256 // in allow, and in deny
	MaxRule     = 512 // bytes
)

// fault is one thing wrong, and where in the fields it is. It repeats nothing of a value.
type fault struct {
	at   strictyaml.Path
	text string
}

// Check makes faults of d of what is wrong with e, which stands at path.
func (e *Expose) Check(d *strictyaml.Document, path strictyaml.Path) { tell(d, path, e.faults()) }

// Check makes faults of d of what is wrong with u, which stands at path.
func (u *Upstream) Check(d *strictyaml.Document, path strictyaml.Path) { tell(d, path, u.faults()) }

// Err is all that is wrong with e; nil for a nil e.
func (e *Expose) Err() error { return joined("expose", e.faults()) }

// Err is all that is wrong with u; nil for a nil u.
func (u *Upstream) Err() error { return joined("upstream", u.faults()) }

func tell(d *strictyaml.Document, path strictyaml.Path, faults []fault) {
	for _, f := range faults {
		d.Faultf(path.Join(f.at...), "%s", f.text)
	}
}

func joined(field string, faults []fault) error {
	errs := make([]error, len(faults))
	for i, f := range faults {
		errs[i] = fmt.Errorf("%s: %s", field, f.text)
	}
	return errors.Join(errs...)
}

func (e *Expose) faults() (faults []fault) {
	if e == nil {
		return nil
	}
	bad := func(text string, at ...any) { faults = append(faults, fault{at, text}) }
	if e.Env == "" && len(e.Commands) == 0 {
		bad("expose needs env, the name of a variable, or commands")
	}
	if e.Env != "" {
		if err := CheckEnv(e.Env); err != nil {
			bad("env: "+err.Error(), "env")
		}
	}
	if len(e.Commands) > MaxCommands {
		bad(fmt.Sprintf("there are more than %d commands", MaxCommands), "commands")
	}
	for _, name := range slices.Sorted(maps.Keys(e.Commands)) {
		if err := checkCommandName(name); err != nil {
			bad(err.Error(), "commands", name)
		} else if err := checkArgv(e.Commands[name]); err != nil {
			bad(err.Error(), "commands", name)
		}
	}
	return faults
}

// CheckEnv says why a program can't be given a secret in a variable of this name.
func CheckEnv(name string) error {
	for i := range len(name) {
		c := name[i]
		if letter := c == '_' || c|0x20 >= 'a' && c|0x20 <= 'z'; !letter && (i == 0 || c < '0' || c > '9') {
			return errors.New("a variable's name is letters, digits and _, no digit first")
		}
	}
	upper := strings.ToUpper(name)
	switch {
	case name == "" || len(name) > 128:
		return errors.New("a variable's name is 1 to 128 characters long")
	case strings.HasPrefix(upper, "KEYLEASE_"):
		return errors.New("variables that begin with KEYLEASE_ are taken from the program before it starts")
	case strings.HasPrefix(upper, "LD_") || strings.HasPrefix(upper, "DYLD_"):
		return errors.New("this variable tells the loader what code to run")
	case slices.Contains(takenEnv, upper):
		return errors.New("this variable means something to shells and programs, which the secret would break or be printed by")
	}
	return nil
}

var takenEnv = []string{"PATH", "HOME", "SHELL", "IFS", "ENV", "BASH_ENV", "BASHOPTS", "SHELLOPTS", "PROMPT_COMMAND", "PS1", "PS2", "PS4", "CDPATH",
	"USER", "LOGNAME", "PWD", "OLDPWD", "TERM", "LANG", "TZ", "TMPDIR", "TMP", "TEMP", "DISPLAY", "NODE_OPTIONS", "PYTHONPATH", "PYTHONSTARTUP",
	"PERL5OPT", "PERL5LIB", "RUBYOPT", "RUBYLIB", "GIT_SSH_COMMAND", "GIT_ASKPASS", "SSH_ASKPASS", "PAGER", "EDITOR", "VISUAL", "SYSTEMROOT", "COMSPEC", "PATHEXT"}

func checkCommandName(s string) error {
	for i := range len(s) {
		c := s[i]
		if alnum := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'; !alnum && (i == 0 || strings.IndexByte("._-", c) < 0) {
			return errors.New("a command's name is a-z, 0-9 and . _ -, beginning with a letter or digit")
		}
	}
	if s == "" || len(s) > 64 {
		return errors.New("a command's name is 1 to 64 characters long")
	}
	return nil
}

func checkArgv(argv []string) error {
	switch {
	case len(argv) == 0:
		return errors.New("a command is a list: the program and its arguments, as in [/usr/bin/gh, pr, list]")
	case len(argv) > MaxArgs:
		return fmt.Errorf("a command has at most %d arguments, its program included", MaxArgs)
	case !path.IsAbs(argv[0]) && !windowsAbs(argv[0]):
		return errors.New("a command's program must be an absolute path: whoever runs it chooses what PATH finds")
	}
	size := 0
	for _, arg := range argv {
		if size += len(arg) + 1; strings.IndexByte(arg, 0) >= 0 {
			return errors.New("an argument holds a NUL, which ends it for every program")
		}
	}
	if size > MaxArgBytes {
		return fmt.Errorf("the arguments are longer than %d KiB", MaxArgBytes>>10)
	}
	return nil
}

// windowsAbs reports whether s is C:\… : the same file is read by daemons on either system.
func windowsAbs(s string) bool {
	return len(s) > 3 && s[0]|0x20 >= 'a' && s[0]|0x20 <= 'z' && s[1] == ':' && (s[2] == '\\' || s[2] == '/')
}

func (u *Upstream) faults() []fault {
	if u == nil {
		return nil
	}
	_, faults := compile(*u)
	return faults
}

// EnvName is the variable that a program gets the secret in: the one that expose names, else the one that the service's
// own tools read first, else the credential's name in capitals with _ for all but letters and digits.
func EnvName(e *Expose, u *Upstream, credential string) string {
	if e != nil && e.Env != "" {
		return e.Env
	}
	if u != nil {
		if s := Lookup(u.Service); s != nil && s.KeyEnv() != "" {
			return s.KeyEnv()
		}
	}
	name := strings.Map(func(r rune) rune {
		if r < 0x80 && (unreserved(byte(r)) && r != '-' && r != '.' && r != '~') {
			return r
		}
		return '_'
	}, strings.ToUpper(credential))
	if CheckEnv(name) != nil { // "7up", "path"
		name = "KEY_" + name
	}
	return name
}

// UnmarshalJSON refuses a field that it does not know: it could be a restriction, written by a later version.
func (e *Expose) UnmarshalJSON(b []byte) error {
	type plain Expose
	return strictly(b, (*plain)(e), "expose")
}

// UnmarshalJSON refuses a field that it does not know, as Expose's does.
func (u *Upstream) UnmarshalJSON(b []byte) error {
	type plain Upstream
	return strictly(b, (*plain)(u), "upstream")
}

func strictly(b []byte, into any, what string) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return fmt.Errorf("reading a credential's %s: %w", what, err)
	}
	return nil
}
