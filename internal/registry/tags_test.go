package registry

import (
	"strings"
	"testing"
)

func TestParseTag(t *testing.T) {
	t.Parallel()
	hex32 := strings.Repeat("0123456789abcdef", 2)
	long := strings.Repeat("a", 63)
	for text, want := range map[string]tag{
		"key.1":                  {class: classKey, number: 1},
		"host.12":                {class: classHost, number: 12},
		"s.shop.1":               {class: classSnapshot, system: "shop", number: 1},
		"s.key.7":                {class: classSnapshot, system: "key", number: 7},
		"e.my-shop_2.10":         {class: classEpoch, system: "my-shop_2", number: 10},
		"w.a.999999999999999999": {class: classSwitch, system: "a", number: 999999999999999999},
		"c.shop.3":               {class: classContinued, system: "shop", number: 3},
		"h.shop.3":               {class: classHeartbeat, system: "shop", number: 3},
		"r.shop.7.12":            {class: classMoved, system: "shop", of: 7, number: 12},
		"l.shop.7.1":             {class: classLock, system: "shop", of: 7, number: 1},
		"s." + long + ".1":       {class: classSnapshot, system: long, number: 1},
		"m." + hex32:             {class: classPacks, prefix: hex32},
		"m." + hex32 + hex32:     {class: classPacks, prefix: hex32 + hex32},

		"latest": {}, "1.2.3": {}, "key.0": {}, "key.01": {}, "key.": {}, "key": {}, "key.1a": {}, "key.1.2": {},
		"s.shop.0": {}, "s.shop.01": {}, "s.shop": {}, "s.a.b.1": {}, "s..1": {}, "s.-a.1": {}, "s.a-.1": {}, "s.Shop.1": {},
		"s." + long + "a.1": {}, "x.shop.1": {}, "r.shop.1": {}, "r.shop.1.0": {}, "r.shop.0.1": {}, "r.shop.1.2.3": {}, "s.shop.1.1": {}, "S.shop.1": {}, "s.shop.1 ": {}, "s.shop.1\n": {},
		"w.a.9999999999999999999": {}, "m." + hex32[:31]: {}, "m." + strings.ToUpper(hex32): {}, "m." + hex32 + hex32 + "0": {}, "": {},
	} {
		want.text = text
		if got := parseTag(text); got != want {
			t.Errorf("%q: %+v, want %+v", text, got, want)
		}
	}
}

func TestTagSeries(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{"key.3": "key", "s.shop.12": "s.shop", "r.shop.12.3": "r.shop.12", "m." + strings.Repeat("a", 32): "m." + strings.Repeat("a", 32), "latest": "latest"} {
		if got := parseTag(text).series(); got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
	for text, want := range map[string]string{"s.shop.12": "s.shop.11", "s.shop.1": "", "r.shop.12.3": "r.shop.12.2", "r.shop.12.1": "s.shop.12", "l.shop.1.1": "s.shop.1", "h.shop.7": "", "latest": ""} {
		if got, ok := parseTag(text).before(); got.text != want || ok != (want != "") {
			t.Errorf("before %s: %q, want %q", text, got.text, want)
		}
	}
	if got := parseTag("e.shop.9").with(10); got != parseTag("e.shop.10") {
		t.Errorf("with: %+v", got)
	}
}

func FuzzParseTag(f *testing.F) {
	for _, s := range []string{"key.1", "s.shop.2", "m.0123456789abcdef0123456789abcdef", "latest", "h..1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got := parseTag(text)
		if got.ordinary() {
			return
		}
		if got.numbered() {
			if back := got.with(got.number); back.text != text {
				t.Errorf("%q comes back as %q", text, back.text)
			}
			if got.system != "" && !isSystem(got.system) {
				t.Errorf("%q: system %q", text, got.system)
			}
		} else if "m."+got.prefix != text {
			t.Errorf("%q: prefix %q", text, got.prefix)
		}
	})
}
