package main

import (
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"

	"keylease/internal/federation"
)

// checkDoor checks who may come in over HTTP and how. Beyond loopback there is TLS or nothing: tokens and secrets would
// travel in the clear.
func (s *settings) checkDoor(from sources) error {
	host, err := checkHTTP(s.HTTP)
	if err != nil {
		return from.fault("http", "write 127.0.0.1:8700, or off", "%s", err)
	}
	ip := net.ParseIP(host)
	switch {
	case s.TLS.Cert == "" && s.TLS.Key != "":
		return from.fault("tls.key", "set tls.cert too", "TLS needs both cert and key")
	case s.TLS.Cert != "" && s.TLS.Key == "":
		return from.fault("tls.cert", "set tls.key too", "TLS needs both cert and key")
	case s.TLS.ClientCA != "" && s.TLS.Cert == "":
		return from.fault("tls.clientCA", "set tls.cert and tls.key", "client certificates need TLS on our side too")
	case s.TLS.ClientCA != "" && len(s.Certificates) == 0:
		return from.fault("tls.clientCA", "list under certificates which names stand for whom", "client certificates are asked for and none of them stands for anybody")
	case s.TLS.ClientCA == "" && len(s.Certificates) > 0:
		return from.fault("certificates", "set tls.clientCA to a file of the authorities that issue them", "client certificates are never asked for")
	case s.HTTP == "off" || strings.EqualFold(host, "localhost") || ip.IsLoopback():
		return s.checkHosts(from)
	case s.TLS.Cert == "":
		return from.fault("http", "set tls.cert and tls.key, or write 127.0.0.1:8700, or off",
			"%q is not a loopback address, and keylease does not start beyond loopback without TLS", terminal(s.HTTP))
	case (host == "" || ip != nil && ip.IsUnspecified()) && s.Resource == "" && len(s.AllowedHosts) == 0:
		return from.fault("http", "set resource, as in https://keys.example.com/mcp, or allowedHosts",
			"%q takes calls on every address of this machine, and nothing says by which names it may be called", terminal(s.HTTP))
	}
	return s.checkHosts(from)
}

func (s *settings) checkHosts(from sources) error {
	for _, h := range s.AllowedHosts {
		u, err := url.Parse("https://" + h)
		if err != nil || h == "" || u.Host != h || u.Hostname() == "" || strings.ContainsAny(h, "*?@") {
			return from.fault("allowedHosts", "write it as in keys.example.com, or with a port", "%q is not the name of a host", terminal(h))
		}
	}
	return nil
}

// checkHTTP returns the host of an address.
func checkHTTP(addr string) (host string, err error) {
	if addr == "off" {
		return "", nil
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", fmt.Errorf("%q is not an address with a port", terminal(addr))
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return "", fmt.Errorf("%q is not a port: that is a number up to 65535", terminal(port))
	}
	return host, nil
}

// federation is what of the configuration is about other people's word.
func (c Config) federation() federation.Config {
	return federation.Config{Resource: c.Resource, Issuers: c.Issuers, Certificates: c.Certificates}
}
