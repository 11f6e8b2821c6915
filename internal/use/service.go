package use

import (
	_ "embed"
	"fmt"
	"maps"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"sync"

	"keylease/internal/strictyaml"
)

// Service is a service whose keys keylease knows how to use. The catalogue is services.yaml, which says what each field means.
type Service struct {
	Name    string        `yaml:"name" json:"name"`
	Title   string        `yaml:"title" json:"title"`
	Hosts   []ServiceHost `yaml:"hosts" json:"hosts"`
	BaseURL string        `yaml:"baseURL" json:"base_url"`
	Env     []string      `yaml:"env" json:"env"`
	Allow   []string      `yaml:"allow" json:"allow"`
	Guarded []string      `yaml:"guarded" json:"guarded"`
	Tenant  []string      `yaml:"tenant" json:"tenant"`
	Slashes []string      `yaml:"slashes" json:"slashes"`
	Notes   string        `yaml:"notes" json:"notes"`

	hosts   []serviceHost
	allow   []rule
	guards  []guard
	slashes []pattern
	drop    []string
}

// ServiceHost is one address of a service. The first whose Paths match gets a request; no Paths: the rest.
type ServiceHost struct {
	URL    string   `yaml:"url" json:"url"`
	Self   string   `yaml:"self" json:"self,omitempty"` // what follows the admin's url where the service is hosted elsewhere
	Header string   `yaml:"header" json:"header"`
	Paths  []string `yaml:"paths" json:"paths,omitempty"`
}

type serviceHost struct {
	host
	self string
}

//go:embed services.yaml
var servicesYAML []byte

// catalogue is read at first use and then shared: nobody changes it.
var catalogue = sync.OnceValue(func() []*Service {
	list, err := parseServices("services.yaml", servicesYAML)
	if err != nil {
		panic(err) // part of the program, and read by every test of this package
	}
	return list
})

// Services is the catalogue, by name. It is shared: do not change it.
func Services() []*Service { return slices.Clone(catalogue()) }

// Names are the services of the catalogue.
func Names() (names []string) {
	for _, s := range catalogue() {
		names = append(names, s.Name)
	}
	return names
}

// Lookup returns a service by its name, or nil.
func Lookup(name string) *Service {
	for _, s := range catalogue() {
		if s.Name == name {
			return s
		}
	}
	return nil
}

// KeyEnv is the variable that the service's own tools read the key from first.
func (s *Service) KeyEnv() string {
	for _, e := range s.Env {
		if name, value, _ := strings.Cut(e, "="); value == "{handle}" && CheckEnv(name) == nil {
			return name
		}
	}
	return ""
}

// Carriers are the request headers, in canonical form, in which clients of the catalogue's services send their key.
func Carriers() []string {
	set := map[string]bool{"Authorization": true, "X-Api-Key": true, "Api-Key": true, "Private-Token": true, "Job-Token": true, "X-Goog-Api-Key": true}
	for _, s := range catalogue() {
		for _, h := range s.hosts {
			set[h.slot.Header] = true
		}
	}
	return slices.Sorted(maps.Keys(set))
}

// tenantHeaders are those of all services, for an upstream that is none of them.
var tenantHeaders = sync.OnceValue(func() []string {
	set := map[string]bool{}
	for _, s := range catalogue() {
		for _, name := range s.drop {
			set[name] = true
		}
	}
	return slices.Sorted(maps.Keys(set))
})

// serviceAt names the service that has an address at this host; "" for none.
func serviceAt(name string) string {
	for _, s := range catalogue() {
		for _, h := range s.hosts {
			if strings.EqualFold(strings.TrimSuffix(name, "."), h.base.Hostname()) {
				return s.Name
			}
		}
	}
	return ""
}

func nearest(s string, known []string) string { return strictyaml.Nearest(s, known) }

func parseServices(file string, data []byte) ([]*Service, error) {
	var f struct {
		Services []Service `yaml:"services"`
	}
	if err := strictyaml.Decode(file, data, &f); err != nil {
		return nil, err
	}
	list := make([]*Service, len(f.Services))
	for i := range f.Services {
		list[i] = &f.Services[i]
		if err := list[i].ready(); err != nil {
			return nil, fmt.Errorf("%s: service %s: %w", file, list[i].Name, err)
		}
	}
	slices.SortFunc(list, func(a, b *Service) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// ready compiles what s says.
func (s *Service) ready() error {
	if s.Name == "" || len(s.Hosts) == 0 || len(s.Allow) == 0 {
		return fmt.Errorf("name, hosts and allow are needed")
	}
	for _, h := range s.Hosts {
		made, err := h.ready()
		if err != nil {
			return fmt.Errorf("%s: %w", h.URL, err)
		}
		s.hosts = append(s.hosts, made)
	}
	for _, text := range s.Allow {
		r, err := parseRule(text)
		if err != nil {
			return fmt.Errorf("%s: %w", text, err)
		}
		s.allow = append(s.allow, r)
	}
	for _, text := range s.Guarded {
		g, err := parseGuard(text)
		if err != nil {
			return fmt.Errorf("%s: %w", text, err)
		}
		s.guards = append(s.guards, g)
	}
	var err error
	if s.slashes, err = patterns(s.Slashes); err != nil {
		return err
	}
	for _, name := range s.Tenant {
		s.drop = append(s.drop, textproto.CanonicalMIMEHeaderKey(name))
	}
	return nil
}

func (h ServiceHost) ready() (serviceHost, error) {
	base, err := url.Parse(h.URL)
	if err != nil {
		return serviceHost{}, err
	}
	slot, err := parseSlot(h.Header)
	if err != nil {
		return serviceHost{}, err
	}
	paths, err := patterns(h.Paths)
	return serviceHost{host{base, slot, paths}, h.Self}, err
}

func patterns(texts []string) (list []pattern, err error) {
	for _, text := range texts {
		p, err := parsePattern(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", text, err)
		}
		list = append(list, p)
	}
	return list, nil
}
