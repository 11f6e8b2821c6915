package mask

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// logText is n bytes of log lines, with the key after every so many bytes (0: never).
func logText(n, every int) []byte {
	var b bytes.Buffer
	for i, next := 0, every; b.Len() < n; i++ {
		fmt.Fprintf(&b, `2026-01-02T15:04:%02dZ INFO request done method=GET path="/v1/items/%d?q=a%%20b" status=200 id=%08x {"ok":true}`+"\n",
			i%60, i, i*2654435761)
		if every > 0 && b.Len() > next {
			b.WriteString("key=" + plainKey + "\n")
			next += every
		}
	}
	return b.Bytes()[:n]
}

// BenchmarkWriter masks pieces of 32 KiB, as io.Copy makes them. "of copy" is how fast that is next to copying the same
// bytes in memory, "of search" next to one bytes.Contains for the key as it is.
func BenchmarkWriter(b *testing.B) {
	for name, every := range map[string]int{"no match": 0, "a match in 4 KiB": 4 << 10} {
		text := logText(1<<20, every)
		for _, kind := range []string{"key", "special", "pem"} {
			m := New([]byte(map[string]string{"key": plainKey, "special": specialKey, "pem": longPEM()}[kind]))
			b.Run(name+"/"+kind, func(b *testing.B) {
				b.SetBytes(int64(len(text)))
				b.ReportAllocs()
				w := m.Writer(io.Discard)
				defer w.Close()
				for b.Loop() {
					for i := 0; i < len(text); i += 32 << 10 {
						_, _ = w.Write(text[i : i+32<<10])
					}
				}
				each := b.Elapsed() / time.Duration(b.N)
				to := make([]byte, len(text))
				b.ReportMetric(float64(took(func() { copy(to, text) }))/float64(each), "of-copy")
				b.ReportMetric(float64(took(func() { bytes.Contains(text, []byte("no such key here")) }))/float64(each), "of-search")
			})
		}
	}
}

// longPEM is as long as an RSA key of 2048 bits.
func longPEM() string {
	b := make([]byte, 1218)
	rand.NewChaCha8([32]byte{}).Read(b)
	var out strings.Builder
	out.WriteString("-----BEGIN FAKE KEY-----\n")
	text := base64.StdEncoding.EncodeToString(b)
	for i := 0; i < len(text); i += 64 {
		out.WriteString(text[i:min(i+64, len(text))] + "\n")
	}
	return out.String() + "-----END FAKE KEY-----\n"
}

// took is the time of one f among a hundred.
func took(f func()) time.Duration {
	start := time.Now()
	for range 100 {
		f()
	}
	return time.Since(start) / 100
}

func BenchmarkNew(b *testing.B) {
	for name, v := range map[string]string{"key of 51": plainKey, "key of 200": strings.Repeat(plainKey, 4)[:200],
		"special": specialKey, "pem of 1.7 KB": longPEM()} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				New([]byte(v))
			}
		})
	}
}
