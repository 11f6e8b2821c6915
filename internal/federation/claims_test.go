package federation

import "testing"

// TestNoTwoSetsOfClaimsHaveOneName: with every pair of short values, where each of them ends can be told from the name.
func TestNoTwoSetsOfClaimsHaveOneName(t *testing.T) {
	values := []string{""}
	for n := 0; n < len(values) && len(values[n]) < 3; n++ {
		for _, letter := range []string{"a", "b", "-", "/"} {
			values = append(values, values[n]+letter)
		}
	}
	for _, name := range []string{"k8s/{ns}/{sa}", "x/{ns}--{sa}", "x/{ns}ab{sa}a", "{ns}-/{sa}/", "{ns}-{ns}/{sa}"} {
		shape, err := parseTemplate(name)
		if err != nil {
			t.Fatal(err)
		}
		whose := map[string][2]string{}
		for _, ns := range values {
			for _, sa := range values {
				got, err := shape.fill(func(claim string) (string, error) { return map[string]string{"ns": ns, "sa": sa}[claim], nil })
				if err != nil {
					continue
				}
				if other, taken := whose[got]; taken {
					t.Fatalf("%s: %s is both %q and %q", name, got, other, [2]string{ns, sa})
				}
				whose[got] = [2]string{ns, sa}
			}
		}
		if len(whose) < 100 {
			t.Errorf("%s names only %d", name, len(whose))
		}
	}
}

func TestB6AClaimDoesNotReachIntoTheNextOnesPartOfTheName(t *testing.T) {
	r := newRig(t, func(i *Issuer) {
		i.Identities = []Mapping{{Match: map[string][]string{"ns": {"*"}}, Name: "k8s/{ns}/{sa}"}}
	})
	as := func(ns, sa string) string { return r.Token(r.good(claimsOf{"ns": ns, "sa": sa})) }
	r.wantName("one", as("agents", "builder"), "k8s/agents/builder")
	r.wantName("the last may hold anything", as("a", "b/c"), "k8s/a/b/c")
	r.wantRefused("another by the same name", as("a/b", "c"), whyName)
}
