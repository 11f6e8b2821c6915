package main

import (
	"fmt"
	"os"
	"path/filepath"

	"keylease/internal/strictyaml"
	"keylease/server"
)

// TLSConfig names the files of HTTP's certificate.
type TLSConfig struct {
	Cert     string `koanf:"cert" yaml:"cert"`         // PEM: the certificate, then those between it and its root
	Key      string `koanf:"key" yaml:"key"`           // PEM: its private key, closed to others
	ClientCA string `koanf:"clientCA" yaml:"clientCA"` // PEM: who may issue client certificates; "": none are asked for
}

// tlsFiles lets the server look whether the files of its certificate changed: they are opened, and read only where
// one of them did. nil: there are none.
func (s settings) tlsFiles() func(prevStamp string) server.TLSRead {
	c := s.TLS
	if c.Cert == "" {
		return nil
	}
	return func(prev string) (r server.TLSRead) {
		var open []*os.File
		defer func() {
			for _, f := range open {
				_ = f.Close()
			}
		}()
		for _, want := range []struct {
			path      string
			forbidden os.FileMode
		}{{c.Cert, 0o022}, {c.Key, 0o037}, {c.ClientCA, 0o022}} {
			if want.path == "" {
				continue
			}
			f, err := openMaterial(want.path, want.forbidden)
			if err != nil {
				r.Err = err
				return r
			}
			open = append(open, f)
			stamp, err := fileStamp(f)
			if err != nil {
				r.Err = fmt.Errorf("looking at %s: %w", want.path, err)
				return r
			}
			r.Stamp += stamp + "\n"
		}
		if r.Stamp == prev {
			return r
		}
		into := []*[]byte{&r.Cert, &r.Key, &r.ClientCA}
		for i, f := range open {
			if *into[i], r.Err = readAll(f, f.Name(), strictyaml.MaxSize); r.Err != nil {
				return server.TLSRead{Err: r.Err}
			}
		}
		if r.Cert == nil {
			r.Cert = []byte{} // empty is a fault, not "nothing changed"
		}
		return r
	}
}

// openMaterial opens a file that somebody else's tool puts there: unlike one of ours it may be reached over symbolic
// links, which is how certificate tools and container platforms swap what they renew. What they lead to has to be
// ours or root's, without the bits in forbidden.
func openMaterial(path string, forbidden os.FileMode) (*os.File, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	return openTrusted(real, forbidden)
}

func readMaterial(path string) ([]byte, error) {
	f, err := openMaterial(path, 0o022)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readAll(f, path, strictyaml.MaxSize)
}
