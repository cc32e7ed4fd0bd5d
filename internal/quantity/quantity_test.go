package quantity_test

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"lifeboat/internal/quantity"
)

func TestParseSize(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]int64{
		"0": 0, "0B": 0, "1B": 1, "64MiB": 64 << 20, "64 MiB": 64 << 20, " 1.5GiB ": 3 << 29,
		"1kB": 1000, "1KB": 1000, "2.5MB": 2500000, "1TB": 1e12, "1TiB": 1 << 40,
	} {
		if got, err := quantity.ParseSize(in); err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "64", "-1B", "1..5MB", "MiB", "1e3MB", "5mib", "99999999TiB", "1 M iB", "NaNB", "0x10B"} {
		if got, err := quantity.ParseSize(in); !errors.Is(err, quantity.ErrSyntax) {
			t.Errorf("ParseSize(%q) = %d, %v; want ErrSyntax", in, got, err)
		}
	}
	for in, want := range map[string]int64{"512m": 512 << 20, "1G": 1 << 30, "1.5g": 3 << 29, "64k": 64 << 10, "1t": 1 << 40, "100b": 100, "64MiB": 64 << 20, "5MB": 5e6, "0": 0} {
		if got, err := quantity.ParseMemory(in); err != nil || got != want {
			t.Errorf("memory %q: %d, %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "m", "64", "-1m", "1mm", "x"} {
		if got, err := quantity.ParseMemory(in); !errors.Is(err, quantity.ErrSyntax) {
			t.Errorf("memory %q: %d, %v", in, got, err)
		}
	}
	if _, err := quantity.ParseSize("512m"); err == nil || !strings.Contains(err.Error(), "MiB") {
		t.Errorf("ambiguous unit: error %v does not name both meanings", err)
	}
}

func TestParseRate(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]int64{"0": 0, "10MiB/s": 10 << 20, "80Mbit/s": 10e6, "8 kbit/s": 1000, "8bit/s": 1} {
		if got, err := quantity.ParseRate(in); err != nil || got != want {
			t.Errorf("ParseRate(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"10MiB", "10", "/s", "10M/s", "10MiB/m"} {
		if got, err := quantity.ParseRate(in); !errors.Is(err, quantity.ErrSyntax) {
			t.Errorf("ParseRate(%q) = %d, %v; want ErrSyntax", in, got, err)
		}
	}
}

func TestParseDuration(t *testing.T) {
	t.Parallel()
	if d, err := quantity.ParseDuration("2m30s"); err != nil || d != 150*time.Second {
		t.Errorf("2m30s: %v, %v", d, err)
	}
	for _, in := range []string{"", "5", "-5s", "5 seconds"} {
		if _, err := quantity.ParseDuration(in); !errors.Is(err, quantity.ErrSyntax) {
			t.Errorf("ParseDuration(%q): %v", in, err)
		}
	}
}

func TestWriting(t *testing.T) {
	t.Parallel()
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.00 KiB", 1536: "1.50 KiB", 1023 * 1024: "1.00 MiB",
		1 << 20: "1.00 MiB", 1310 << 20: "1.28 GiB", -2048: "-2.00 KiB", math.MaxInt64: "8.00 EiB",
	} {
		if got := quantity.Size(n); got != want {
			t.Errorf("Size(%d) = %q, want %q", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{
		0: "0 s", 42: "42 ns", 850 * time.Microsecond: "850 µs", 32 * time.Millisecond: "32 ms",
		5200 * time.Millisecond: "5.2 s", 59970 * time.Millisecond: "1 min 00 s", 192 * time.Second: "3 min 12 s",
		125 * time.Minute: "2 h 05 min", 76 * time.Hour: "3 d 4 h", -time.Second: "-1.0 s",
	} {
		if got := quantity.Duration(d); got != want {
			t.Errorf("Duration(%d) = %q, want %q", d, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0", 999: "999", 41538: "41,538", -1234567: "-1,234,567"} {
		if got := quantity.Count(n); got != want {
			t.Errorf("Count(%d) = %q, want %q", n, got, want)
		}
	}
	if got := quantity.Rate(math.NaN()); got != "0 B/s" {
		t.Errorf("Rate(NaN) = %q", got)
	}
}

func TestExactSizeIsReadBack(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int64Range(0, 1<<52).Draw(t, "n")
		got, err := quantity.ParseSize(quantity.ExactSize(n))
		if err != nil || got != n {
			t.Fatalf("%d → %q → %d, %v", n, quantity.ExactSize(n), got, err)
		}
	})
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"64MiB", "80Mbit/s", "5s", "512m", "1e9", "0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := quantity.ParseSize(s); err == nil && n < 0 {
			t.Errorf("ParseSize(%q) = %d", s, n)
		}
		if n, err := quantity.ParseRate(s); err == nil && n < 0 {
			t.Errorf("ParseRate(%q) = %d", s, n)
		}
		if d, err := quantity.ParseDuration(s); err == nil && d < 0 {
			t.Errorf("ParseDuration(%q) = %d", s, d)
		}
	})
}
