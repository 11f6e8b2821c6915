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

// tlsFiles are the files of the server's certificate. nil: there are none.
func (s settings) tlsFiles() *server.TLSFiles {
	c := s.TLS
	if c.Cert == "" {
		return nil
	}
	files := &server.TLSFiles{Pair: lookAt(material{c.Cert, 0o022}, material{c.Key, 0o037})}
	if c.ClientCA != "" {
		files.ClientCA = lookAt(material{c.ClientCA, 0o022})
	}
	return files
}

// material is a file of somebody else's tool, and the mode bits that it may not have.
type material struct {
	path      string
	forbidden os.FileMode
}

// lookAt lets the server look whether files changed: they are opened, and read only where one of them did.
func lookAt(files ...material) func(prevStamp string) server.TLSRead {
	return func(prev string) (r server.TLSRead) {
		var open []*os.File
		defer func() {
			for _, f := range open {
				_ = f.Close()
			}
		}()
		for _, want := range files {
			f, err := openMaterial(want.path, want.forbidden)
			if err != nil {
				return server.TLSRead{Err: err}
			}
			open = append(open, f)
			stamp, err := fileStamp(f)
			if err != nil {
				return server.TLSRead{Err: fmt.Errorf("looking at %s: %w", want.path, err)}
			}
			r.Stamp += stamp + "\n"
		}
		if r.Stamp == prev {
			return r
		}
		for _, f := range open {
			text, err := readAll(f, f.Name(), strictyaml.MaxSize)
			if err != nil {
				return server.TLSRead{Err: err}
			}
			r.PEM = append(r.PEM, text)
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
