package retain

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"lifeboat/internal/dr"
)

// Unlimited is a count that is never used up.
const Unlimited = -1

// maxCount bounds counts and the parts of a span.
const maxCount = 100_000

// Policy says how many snapshots are kept. A snapshot stays when any part of it
// keeps it. The zero value keeps nothing and is not a policy (Empty).
type Policy struct {
	// Last keeps the newest n snapshots.
	Last int
	// Hourly keeps the newest snapshot of each of the last n hours that have one;
	// Daily, Weekly (ISO 8601), Monthly and Yearly likewise. Hours and days are
	// those of UTC, so that every host decides alike. As long as a count is not
	// used up the oldest snapshot is kept too.
	Hourly, Daily, Weekly, Monthly, Yearly int
	// Within keeps every snapshot that is not older than this before the newest.
	Within Span
}

// Empty reports whether the policy would keep nothing.
func (p Policy) Empty() bool { return p == Policy{} }

// String is the policy in the words of the command line.
func (p Policy) String() string {
	var parts []string
	for _, c := range []struct {
		name  string
		count int
	}{{"last", p.Last}, {"hourly", p.Hourly}, {"daily", p.Daily}, {"weekly", p.Weekly}, {"monthly", p.Monthly}, {"yearly", p.Yearly}} {
		switch {
		case c.count == Unlimited:
			parts = append(parts, c.name+" unlimited")
		case c.count != 0:
			parts = append(parts, fmt.Sprintf("%s %d", c.name, c.count))
		}
	}
	if p.Within != (Span{}) {
		parts = append(parts, "within "+p.Within.String())
	}
	if len(parts) == 0 {
		return "keep nothing"
	}
	return "keep " + strings.Join(parts, ", ")
}

// ParseCount reads a count: a number, or "unlimited". The error wraps
// dr.ErrUsage.
func ParseCount(s string) (int, error) {
	if s == "unlimited" {
		return Unlimited, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || n > maxCount {
		return 0, fmt.Errorf("%q is not a count: want a number from 0 to %d, or unlimited: %w", s, maxCount, dr.ErrUsage)
	}
	return n, nil
}

// Span is a length of time by the calendar.
type Span struct{ Years, Months, Days, Hours int }

var spanRE = regexp.MustCompile(`^(?:(\d{1,6})y)?(?:(\d{1,6})m)?(?:(\d{1,6})d)?(?:(\d{1,6})h)?$`)

// ParseSpan reads a span such as 1y6m, 7d or 2d12h: years, months, days, hours.
// The error wraps dr.ErrUsage.
func ParseSpan(s string) (Span, error) {
	bad := fmt.Errorf("%q is not a span: want years, months, days and hours such as 1y6m, 7d or 2d12h: %w", s, dr.ErrUsage)
	m := spanRE.FindStringSubmatch(s)
	if m == nil || s == "" {
		return Span{}, bad
	}
	var v [4]int
	for i, digits := range m[1:] {
		if digits == "" {
			continue
		}
		n, err := strconv.Atoi(digits)
		if err != nil || n > maxCount {
			return Span{}, bad
		}
		v[i] = n
	}
	return Span{v[0], v[1], v[2], v[3]}, nil
}

// String is the form that ParseSpan reads.
func (s Span) String() string {
	var b strings.Builder
	for _, p := range []struct {
		n    int
		unit string
	}{{s.Years, "y"}, {s.Months, "m"}, {s.Days, "d"}, {s.Hours, "h"}} {
		if p.n != 0 {
			fmt.Fprintf(&b, "%d%s", p.n, p.unit)
		}
	}
	if b.Len() == 0 {
		return "0h"
	}
	return b.String()
}

// before is the instant this long before t.
func (s Span) before(t time.Time) time.Time {
	return t.AddDate(-s.Years, -s.Months, -s.Days).Add(-time.Duration(s.Hours) * time.Hour)
}
