package strictyaml

import (
	"fmt"
	"strings"
)

// unknownField names the field only where that can't be a misplaced value: close to a field that there is, or
// nothing but a short run of letters and "_".
func unknownField(name string, known []string) string {
	if near := Nearest(name, known); near != "" {
		return fmt.Sprintf("unknown field %q: did you mean %q?", name, near)
	}
	return fmt.Sprintf("unknown field%s: the fields here are %s", quoted(name), strings.Join(known, ", "))
}

func fieldName(name string) string { return "field" + quoted(name) }

func quoted(name string) string {
	if name == "" || len(name) > 24 {
		return ""
	}
	for i := range len(name) {
		if c := name[i] | 0x20; (c < 'a' || c > 'z') && name[i] != '_' {
			return ""
		}
	}
	return fmt.Sprintf(" %q", name)
}

// Nearest returns the known word that s was most likely meant to be, or "". A word is near when a third of its
// letters or fewer differ, case, "_" and "-" aside: so what is near may be repeated in an error, as it is no secret.
func Nearest(s string, known []string) string {
	if len(s) > 40 {
		return ""
	}
	plain := strings.NewReplacer("_", "", "-", "")
	best, bestDistance := "", 0
	for _, k := range known {
		n := distance(strings.ToLower(plain.Replace(s)), strings.ToLower(k))
		if n <= (len(k)+1)/3 && (best == "" || n < bestDistance) {
			best, bestDistance = k, n
		}
	}
	return best
}

// distance is how many letters must be put in, left out, changed or swapped with a neighbour to make b of a.
func distance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
