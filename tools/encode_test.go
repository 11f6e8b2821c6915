package tools

import (
	"encoding/json"
	"testing"

	"pgregory.net/rapid"
)

// A page is encoded as encoding/json encodes it, whatever is in it. A member that is added to the types and not to
// the encoding fails this.
func TestAPageIsEncodedAsJSONEncodesIt(t *testing.T) {
	pages := rapid.Make[listResult]()
	rapid.Check(t, func(t *rapid.T) {
		page := pages.Draw(t, "page")
		want, err := json.Marshal(page)
		if err != nil {
			t.Fatal(err)
		}
		if got := page.appendJSON(nil); string(got) != string(want) {
			t.Fatalf("\n got %s\nwant %s", got, want)
		}
	})
}
