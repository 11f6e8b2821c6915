package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"

	"keylease/server"
)

func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// readValue gets a value from a person, who types it twice and unseen, or from stdin. Never from the command line:
// that is in the shell's history and in every process list.
func (a *app) readValue(ctx context.Context, what string) ([]byte, error) {
	var value []byte
	var err error
	if f, ok := a.in.(*os.File); ok && isTerminal(f) {
		value, err = a.ask(ctx, f, what)
	} else {
		value, err = io.ReadAll(io.LimitReader(a.in, server.MaxValue+3)) // one more than a value and its line end
		if err != nil {
			return nil, fmt.Errorf("reading the value on stdin: %w", err)
		}
		value = oneLineLess(value)
	}
	if err != nil {
		return nil, err
	}
	if err := stray(value); err != nil {
		clear(value)
		return nil, err
	}
	return value, nil
}

// oneLineLess takes off the one line end that echo and editors put behind a text.
func oneLineLess(b []byte) []byte {
	if n := len(b) - 1; n >= 0 && b[n] == '\n' {
		return bytes.TrimSuffix(b[:n], []byte("\r"))
	}
	return b
}

// stray refuses what was most likely not meant: nothing, too much, or white space around the value.
func stray(b []byte) error {
	first, _ := utf8.DecodeRune(b)
	last, _ := utf8.DecodeLastRune(b)
	switch {
	case len(b) == 0:
		return usagef("type it at the prompt, or pass it on stdin", "the value is empty")
	case len(b) > server.MaxValue:
		return usagef("", "the value is too long: at most %d bytes are stored", server.MaxValue)
	case unicode.IsSpace(first) || unicode.IsSpace(last):
		return usagef("pass it exactly as it is; a seed file takes values that really are so", "the value begins or ends with white space")
	}
	return nil
}

func (a *app) ask(ctx context.Context, f *os.File, what string) ([]byte, error) {
	first, err := a.typed(ctx, f, what+": ")
	if err != nil {
		return nil, err
	}
	again, err := a.typed(ctx, f, "again: ")
	if err != nil {
		return nil, err
	}
	defer clear(again)
	if !bytes.Equal(first, again) {
		clear(first)
		return nil, usagef("", "the two do not match")
	}
	return first, nil
}

// typed reads one unseen line. When ctx ends (^C) the terminal is put back as it was.
func (a *app) typed(ctx context.Context, f *os.File, prompt string) ([]byte, error) {
	before, err := term.GetState(int(f.Fd()))
	if err != nil {
		return nil, fmt.Errorf("asking at the terminal: %w", err)
	}
	fmt.Fprint(a.err, prompt)
	type answer struct {
		line []byte
		err  error
	}
	got := make(chan answer, 1)
	go func() { // ends with the line, or with the program
		line, err := term.ReadPassword(int(f.Fd()))
		got <- answer{line, err}
	}()
	select {
	case in := <-got:
		fmt.Fprintln(a.err)
		if in.err == io.EOF {
			return nil, usagef("", "no value was given")
		}
		return in.line, in.err
	case <-ctx.Done():
		_ = term.Restore(int(f.Fd()), before)
		fmt.Fprintln(a.err)
		return nil, fail(exitInterrupted, "", "interrupted: nothing was stored")
	}
}
