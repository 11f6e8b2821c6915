package main

import (
	"errors"
	"fmt"
	"io/fs"

	"keylease/internal/lease"
	"keylease/internal/strictyaml"
)

// policyFile lets the broker look whether the policy changed: one lstat where it did not.
func policyFile(path string) func(prevStamp string) lease.PolicyRead {
	return func(prev string) lease.PolicyRead {
		r := lease.PolicyRead{Name: path}
		if prev != "" && hasStamp(path, prev) { // each decision looks; opening is for what changed
			r.Stamp = prev
			return r
		}
		f, err := openTrusted(path, 0o022)
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				err = fmt.Errorf("opening the policy: %w", err)
			}
			r.Err = err
			return r
		}
		defer f.Close()
		if r.Stamp, r.Err = fileStamp(f); r.Err != nil || r.Stamp == prev {
			return r
		}
		if r.Data, r.Err = readAll(f, path, strictyaml.MaxSize); r.Err == nil && r.Data == nil {
			r.Data = []byte{}
		}
		return r
	}
}
