//go:build linux

package promises

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestIssuersThatCanNotWorkAreToldAtTheStart: with authorities that can't be read keylease does not start; without HTTP
// it says that nobody comes in by them.
func TestIssuersThatCanNotWorkAreToldAtTheStart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.configure("resource: " + resource + "\nissuers:\n  - issuer: https://idp.example.com\n    caFile: ca.pem\n    identities:\n" + robots)
	if o := w.refused(2, "serve", "--http", "127.0.0.1:0"); !strings.Contains(o.err, "ca.pem") || !strings.Contains(o.err, "https://idp.example.com") {
		t.Errorf("no such file: %s", o)
	}
	w.write(filepath.Join(w.config(), "ca.pem"), "nothing of the kind\n")
	if o := w.refused(2, "serve", "--http", "127.0.0.1:0"); !strings.Contains(o.err, "ca.pem") || !strings.Contains(o.err, "holds no certificate") {
		t.Errorf("no certificate in it: %s", o)
	}
	if said := w.serve("--http", "off").log.String(); !strings.Contains(said, "warning: http is off, so issuers and certificates let nobody in") {
		t.Errorf("without HTTP: %s", said)
	}
}
