package server

import (
	"bufio"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"io"
	"slices"
	"strings"
)

// decoder undoes one encoding of a body, a piece at a time: what a bomb unpacks to is never held.
type decoder func(io.Reader) (io.Reader, error)

// decoders are those that undo these encodings, in order. Nothing was asked for but identity, so one that is not known
// is an upstream that does not listen.
func decoders(header []string) (all []decoder, ok bool) {
	for _, v := range header {
		for name := range strings.SplitSeq(v, ",") {
			switch strings.ToLower(strings.TrimSpace(name)) {
			case "", "identity":
			case "gzip", "x-gzip":
				all = append(all, func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) })
			case "deflate":
				all = append(all, inflate)
			default:
				return nil, false
			}
		}
	}
	slices.Reverse(all)
	return all, len(all) <= 2
}

// inflate takes both things that servers call deflate.
func inflate(r io.Reader) (io.Reader, error) {
	b := bufio.NewReader(r)
	head, err := b.Peek(2)
	if err == nil && head[0]&0x0f == 8 && (uint(head[0])<<8|uint(head[1]))%31 == 0 {
		return zlib.NewReader(b)
	}
	if len(head) == 0 && err != nil {
		return nil, err
	}
	return flate.NewReader(b), nil
}

// decoding opens its decoder with the first Read, so that the head of an answer does not wait for its body.
type decoding struct {
	src  io.Reader
	open decoder
	r    io.Reader
}

func (d *decoding) Read(b []byte) (int, error) {
	if d.r == nil {
		r, err := d.open(d.src)
		if err != nil { // io.EOF: the body is empty
			return 0, err
		}
		d.r = r
	}
	return d.r.Read(b)
}
