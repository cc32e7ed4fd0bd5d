// Package quantity reads and writes byte sizes, rates, durations and counts
// the way people write them in a configuration and read them in an answer.
// Parsing is strict: a unit is always named, and a unit that means different
// things to different programs ("M", "m") is refused with both meanings.
//
// It does not lay out text; that is package ui.
package quantity

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// ErrSyntax: the text is not a quantity of the wanted kind.
var ErrSyntax = errors.New("bad quantity")

type unit struct {
	name   string
	factor float64
}

var sizeUnits = []unit{
	{"KiB", 1 << 10},
	{"MiB", 1 << 20},
	{"GiB", 1 << 30},
	{"TiB", 1 << 40},
	{"kB", 1e3},
	{"KB", 1e3},
	{"MB", 1e6},
	{"GB", 1e9},
	{"TB", 1e12},
	{"B", 1},
}

var bitUnits = []unit{
	{"kbit", 1e3 / 8}, {"Mbit", 1e6 / 8}, {"Gbit", 1e9 / 8}, {"bit", 1.0 / 8},
}

// ParseSize reads a size in bytes: a number and B, kB, MB, GB, TB (powers of
// 1000) or KiB, MiB, GiB, TiB (powers of 1024), with or without a space
// between. "0" needs no unit. The error wraps ErrSyntax.
func ParseSize(s string) (int64, error) {
	return parse(s, sizeUnits, "a size such as 64MiB or 1.5GB")
}

// ParseMemory is ParseSize that also takes Docker's notation for memory: k, m, g
// and t, small or capital, are powers of 1024 there. The error wraps ErrSyntax.
func ParseMemory(s string) (int64, error) {
	t := strings.TrimSpace(s)
	switch n := len(t); {
	case n > 0 && strings.ContainsRune("kKmMgGtT", rune(t[n-1])):
		t = t[:n-1] + strings.ToUpper(t[n-1:]) + "iB"
	case n > 0 && t[n-1] == 'b':
		t = t[:n-1] + "B"
	default:
		return ParseSize(s)
	}
	n, err := ParseSize(t)
	if err != nil {
		return 0, fmt.Errorf("%q is not a size such as 512m, 64MiB or 1.5GB: %w", s, ErrSyntax)
	}
	return n, nil
}

// ParseRate reads a rate in bytes per second: a size followed by "/s", or
// kbit/s, Mbit/s, Gbit/s as network people write it. "0" means no limit to
// those who ask for one. The error wraps ErrSyntax.
func ParseRate(s string) (int64, error) {
	const want = "a rate such as 10MiB/s or 80Mbit/s"
	t := strings.TrimSpace(s)
	if t == "0" {
		return 0, nil
	}
	t, ok := strings.CutSuffix(t, "/s")
	if !ok {
		return 0, fmt.Errorf("%q has no \"/s\" at its end, want %s: %w", s, want, ErrSyntax)
	}
	return parse(t, append(append([]unit(nil), bitUnits...), sizeUnits...), want)
}

// ParseDuration reads a duration in Go's notation (300ms, 5s, 2m30s); it must
// not be negative. "0" needs no unit. The error wraps ErrSyntax.
func ParseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(strings.TrimSpace(s))
	if err != nil {
		return 0, fmt.Errorf("%q is not a duration such as 300ms, 5s or 2m: %w", s, ErrSyntax)
	}
	if d < 0 {
		return 0, fmt.Errorf("%q is negative: %w", s, ErrSyntax)
	}
	return d, nil
}

func parse(s string, units []unit, want string) (int64, error) {
	t := strings.TrimSpace(s)
	if t == "0" {
		return 0, nil
	}
	end := strings.IndexFunc(t, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	if end < 0 {
		return 0, fmt.Errorf("%q has no unit, want %s: %w", s, want, ErrSyntax)
	}
	name := strings.TrimSpace(t[end:])
	factor := 0.0
	for _, u := range units {
		if u.name == name {
			factor = u.factor
			break
		}
	}
	if factor == 0 {
		if strings.ContainsAny(name, "kKmMgGtT") && len(name) == 1 {
			n := strings.ToUpper(name)
			return 0, fmt.Errorf("%q: the unit %q is ambiguous, write %sB (powers of 1000) or %siB (powers of 1024): %w", s, name, n, n, ErrSyntax)
		}
		return 0, fmt.Errorf("%q is not %s: %w", s, want, ErrSyntax)
	}
	v, err := strconv.ParseFloat(t[:end], 64)
	if err != nil {
		return 0, fmt.Errorf("%q is not %s: %w", s, want, ErrSyntax)
	}
	v *= factor
	if v >= math.MaxInt64 {
		return 0, fmt.Errorf("%q is too large: %w", s, ErrSyntax)
	}
	return int64(math.Round(v)), nil
}

// Size writes a size in bytes with three significant digits and a binary unit:
// "0 B", "512 B", "1.44 GiB".
func Size(n int64) string {
	if n < 0 {
		return "-" + Size(-max(n, -math.MaxInt64))
	}
	if n < 1024 {
		return strconv.FormatInt(n, 10) + " B"
	}
	v := float64(n)
	i := -1
	names := []string{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	// 999.5 would be rounded to four digits: it is shown in the next unit.
	for v >= 999.5 && i < len(names)-1 {
		v /= 1024
		i++
	}
	return digits3(v) + " " + names[i]
}

// ExactSize writes a size that ParseSize reads back as the same number of
// bytes: with a binary unit where that is exact, in bytes else.
func ExactSize(n int64) string {
	for i := 3; i >= 0; i-- {
		if f := int64(sizeUnits[i].factor); n >= f && n%f == 0 {
			return strconv.FormatInt(n/f, 10) + sizeUnits[i].name
		}
	}
	return strconv.FormatInt(n, 10) + "B"
}

// Rate writes a rate in bytes per second: "12.3 MiB/s".
func Rate(bytesPerSecond float64) string {
	if math.IsNaN(bytesPerSecond) || bytesPerSecond < 0 || bytesPerSecond > math.MaxInt64/2 {
		bytesPerSecond = 0
	}
	return Size(int64(bytesPerSecond)) + "/s"
}

// Duration writes a duration as a person would say it: "850 µs", "32 ms",
// "5.2 s", "3 min 12 s", "2 h 05 min", "3 d 4 h".
func Duration(d time.Duration) string {
	if d < 0 {
		return "-" + Duration(-max(d, -math.MaxInt64))
	}
	switch {
	case d == 0:
		return "0 s"
	case d < time.Microsecond:
		return fmt.Sprintf("%d ns", d.Nanoseconds())
	case d < 1000*time.Microsecond:
		return fmt.Sprintf("%d µs", d.Microseconds())
	case d < 1000*time.Millisecond:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < 59950*time.Millisecond:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < time.Hour-time.Second/2:
		d = d.Round(time.Second)
		return fmt.Sprintf("%d min %02d s", int(d.Minutes()), int(d.Seconds())%60)
	case d < 24*time.Hour-time.Minute/2:
		d = d.Round(time.Minute)
		return fmt.Sprintf("%d h %02d min", int(d.Hours()), int(d.Minutes())%60)
	default:
		d = d.Round(time.Hour)
		return fmt.Sprintf("%d d %d h", int(d.Hours())/24, int(d.Hours())%24)
	}
}

// Count writes a number with a comma between groups of three digits: "41,538".
func Count(n int64) string {
	s := strconv.FormatInt(n, 10)
	sign := ""
	if n < 0 {
		sign, s = "-", s[1:]
	}
	var b strings.Builder
	b.WriteString(sign)
	for i, r := range s {
		if i > 0 && (len(s)-i)%3 == 0 {
			b.WriteByte(',')
		}
		b.WriteRune(r)
	}
	return b.String()
}

func digits3(v float64) string {
	switch {
	case v < 9.995:
		return strconv.FormatFloat(v, 'f', 2, 64)
	case v < 99.95:
		return strconv.FormatFloat(v, 'f', 1, 64)
	default:
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
}
