package secret

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

func TestSecretNeverPrints(t *testing.T) {
	const canary = "sk-canary-0123456789"
	s := New([]byte(canary))
	holder := struct {
		Name  string
		Value Secret
		Ptr   *Secret
	}{"k", s, &s}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		out := fmt.Sprintf(verb+" "+verb+" "+verb, s, &s, holder)
		hex := fmt.Sprintf("%x", canary)
		if strings.Contains(out, canary) || strings.Contains(strings.ToLower(out), hex) {
			t.Errorf("%s printed the value", verb)
		}
	}
	j, err := json.Marshal(holder)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(j), canary) || !strings.Contains(string(j), Masked) {
		t.Error("JSON holds the value, or does not hold the mask")
	}
}

func TestWipeClearsTheBytes(t *testing.T) {
	b := []byte("sk-canary")
	New(b).Wipe()
	for _, c := range b {
		if c != 0 {
			t.Fatal("bytes survive Wipe")
		}
	}
}
