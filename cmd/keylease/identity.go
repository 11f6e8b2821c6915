package main

import (
	"os"

	"keylease/internal/identity"
)

// emptyToken is sent where KEYLEASE_TOKEN is set to nothing, as by a "${TEAM_TOKEN}" that did not expand: it proves
// nothing, and so every call is refused. To take it for "no token" would lend under a name that nobody proved.
const emptyToken = "(empty)"

// whoAsks is who an agent's command says it is: what KEYLEASE_TOKEN proves, which is taken out of the environment so that
// nothing that we start inherits it, or else the name of the flag --as or of KEYLEASE_AS.
func (a *app) whoAsks(as string) (name, token string, err error) {
	token = a.env("KEYLEASE_TOKEN")
	if _, set := os.LookupEnv("KEYLEASE_TOKEN"); set && token == "" {
		token = emptyToken
	}
	_ = os.Unsetenv("KEYLEASE_TOKEN")
	if as == "" {
		as = a.env("KEYLEASE_AS")
	}
	if as != "" {
		if err := identity.CheckName(as); err != nil {
			return "", "", usagef("--as and KEYLEASE_AS take a name such as claude-code", "%s", err)
		}
	}
	return as, token, nil
}
