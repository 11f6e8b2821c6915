package main

import (
	"errors"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/v2"

	"keylease/internal/strictyaml"
)

// loadEnv adds KEYLEASE_*. A variable that means nothing is refused: it was meant to mean something.
func (a *app) loadEnv(k *koanf.Koanf, home string, from sources) error {
	known := map[string]string{}
	for _, key := range k.Keys() {
		known[strings.ToLower(key)] = key
	}
	var fault error
	err := k.Load(env.Provider(".", env.Opt{Prefix: "KEYLEASE_", EnvironFunc: a.environ, TransformFunc: func(name, value string) (string, any) {
		if slices.Contains(notConfig[:], name) {
			return "", nil
		}
		flat := strings.ReplaceAll(strings.TrimPrefix(name, "KEYLEASE_"), "__", ".")
		flat = strings.ToLower(strings.ReplaceAll(flat, "_", ""))
		if slices.Contains(fileOnly[:], flat) {
			fault = usagef("unset it", "%s: %s is set in keylease.yaml alone", name, flat)
			return "", nil
		}
		key, ok := known[flat]
		if !ok {
			fault = usagef(nearestVariable(name, known), "the environment holds %s, which keylease does not know", terminal(name))
			return "", nil
		}
		from[key] = name
		switch kind := reflect.TypeOf(k.Get(key)).Kind(); {
		case kind == reflect.Int || kind == reflect.Float64:
			n, err := strconv.ParseFloat(value, 64)
			if whole := n == math.Trunc(n); err != nil || kind == reflect.Int && !whole {
				fault = usagef("write 0 for no limit", "%s must be a number%s", name, map[bool]string{true: ", and whole"}[err == nil])
			}
			return key, n
		case kind == reflect.Slice:
			return key, strings.FieldsFunc(value, func(r rune) bool { return r == ',' || r == ' ' })
		case slices.Contains(pathKeys[:], key):
			path, err := resolve(value, home, "")
			if err != nil {
				fault = usagef("", "%s: %s", name, err)
			}
			return key, path
		}
		return key, value
	}}), nil)
	return errors.Join(fault, err)
}

func nearestVariable(name string, known map[string]string) string {
	names := notConfig[:]
	for _, key := range known {
		names = append(names, "KEYLEASE_"+strings.ToUpper(strings.ReplaceAll(key, ".", "__")))
	}
	if near := strictyaml.Nearest(name, names); near != "" {
		return "did you mean " + near + "?"
	}
	return "unset it"
}
