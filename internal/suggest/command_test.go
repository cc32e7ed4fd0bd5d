package suggest_test

import (
	"testing"

	"lifeboat/internal/suggest"
)

func TestCommand(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		words []string
		want  string
	}{
		{[]string{"lifeboat", "failover", "shop", "--override", "ports.web/8080:80/tcp=18080"}, "lifeboat failover shop --override ports.web/8080:80/tcp=18080"},
		{[]string{"--override", `names.containers."a b"=c`}, `--override 'names.containers."a b"=c'`},
		{[]string{"it's", "", "$(x)", "a;b", "[::1]", "é"}, `'it'\''s' '' '$(x)' 'a;b' '[::1]' 'é'`},
		{[]string{"a b c"}, `'a b c'`},
		{[]string{"shop@#7", "#7"}, `shop@#7 '#7'`}, // a comment begins a word
	} {
		if got := suggest.Command(tt.words...); got != tt.want {
			t.Errorf("%q: %s, want %s", tt.words, got, tt.want)
		}
	}
}
