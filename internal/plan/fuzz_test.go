package plan_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/plan"
)

// FuzzJournal: whatever a crash or a bad disk has left in a journal, opening it
// ends; what it kept once is kept when it is opened again, and what was torn off
// at the end costs no more than that.
func FuzzJournal(f *testing.F) {
	begin := `{"event":"begin","value":{"operation":"failover","system":"shop"}}` + "\n"
	for _, s := range []string{
		"", begin, begin + `{"event":"done","step":"one"}` + "\n" + `{"event":"fact","key":"a","value":1}` + "\n",
		begin + `{"event":"done","step":"one"}`, begin + `{"event":"end"}` + "\n", "\n", begin + "\r\n{}\r\n", `{"event":"fact","key":"a"}` + "\n" + begin,
		begin + `{"event":"done","step":"one"}` + "\r\n" + `{"event":"done","step":"two"}` + "\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "j")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		before, err := plan.Unfinished(path)
		if err == nil && before != nil && before.Operation == "" {
			t.Fatal("work without an operation")
		}
		j, err := plan.Open(path, header("failover"))
		if err != nil {
			return
		}
		first := j.Header()
		if err := j.SetFact("later", 7); err != nil {
			t.Fatal(err)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		again, err := plan.Open(path, header("switchover"))
		if err != nil {
			t.Fatalf("opened once, and not again: %v", err)
		}
		defer again.Close()
		if diff := cmp.Diff(first, again.Header()); diff != "" {
			t.Fatalf("the header is another one: %s", diff)
		}
		var got int
		if ok, err := again.Fact("later", &got); !ok || err != nil || got != 7 {
			t.Fatalf("the fact is gone: %v %v %d", ok, err, got)
		}
	})
}
