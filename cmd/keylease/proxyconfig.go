package main

import (
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"net/url"
	"strconv"

	"keylease/internal/strictyaml"
	"keylease/server"
)

// ProxyConfig is about the proxy through which keys are used unseen.
type ProxyConfig struct {
	Listen string `koanf:"listen" yaml:"listen"` // a loopback address as 127.0.0.1:8701; "": a port that is chosen once and kept
	CA     string `koanf:"ca" yaml:"ca"`         // PEM: authorities beside the system's that upstreams' certificates may come from
	Egress string `koanf:"egress" yaml:"egress"` // http://proxy.example:3128, by which public upstreams are reached; "": directly
}

func (s *settings) checkProxy(from sources) error {
	c := s.Proxy
	if c.Listen != "" {
		host, port, err := net.SplitHostPort(c.Listen)
		ip, bad := netip.ParseAddr(host)
		n, wrong := strconv.ParseUint(port, 10, 16)
		if err != nil || bad != nil || !ip.IsLoopback() || wrong != nil || n == 0 {
			return from.fault("proxy.listen", "write 127.0.0.1:8701, or leave it out", "%q is not a loopback address with a port; whoever reaches the proxy could use the handles that were lent", terminal(c.Listen))
		}
	}
	if c.Egress != "" {
		u, err := url.Parse(c.Egress)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" {
			return from.fault("proxy.egress", "write it as in http://proxy.example:3128", "it is not the URL of an HTTP proxy")
		}
	}
	return nil
}

// proxy is what the server needs of it. net/http tells Go's own logger what an upstream sends unasked, and that may hold
// a key: from here on nobody hears it.
func (s settings) proxy() (server.ProxyOptions, error) {
	log.SetOutput(io.Discard)
	o := server.ProxyOptions{Listen: s.Proxy.Listen}
	if s.Proxy.Egress != "" {
		u, err := url.Parse(s.Proxy.Egress)
		if err != nil {
			return o, fmt.Errorf("proxy.egress is not a URL")
		}
		o.Egress = u
	}
	if s.Proxy.CA == "" {
		return o, nil
	}
	pem, err := readTrusted(s.Proxy.CA, strictyaml.MaxSize, 0o022)
	if err != nil {
		return o, usagef("", "reading proxy.ca: %s", err)
	}
	if !x509.NewCertPool().AppendCertsFromPEM(pem) {
		return o, usagef("write the certificates of authorities as PEM", "proxy.ca: %s holds no certificate", s.Proxy.CA)
	}
	o.Roots = pem
	return o, nil
}
