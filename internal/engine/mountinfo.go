package engine

import (
	"bufio"
	"fmt"
	"io"
	"strings"
)

// mountEntry is one line of /proc/PID/mountinfo, as far as it is needed here.
type mountEntry struct {
	mountPoint string
	fsType     string
	source     string
	options    map[string]string // of the superblock
}

// parseMountInfo reads a mount table (proc(5), mountinfo).
func parseMountInfo(r io.Reader) ([]mountEntry, error) {
	var out []mountEntry
	s := bufio.NewScanner(r)
	// An overlay of 120 layers with long names has a line of several pages.
	s.Buffer(make([]byte, 0, 64<<10), 1<<20)
	for s.Scan() {
		before, after, ok := strings.Cut(s.Text(), " - ")
		head := strings.Fields(before)
		tail := strings.SplitN(after, " ", 3)
		if !ok || len(head) < 6 || len(tail) < 2 {
			return nil, fmt.Errorf("line %d is not of the known form", len(out)+1)
		}
		m := mountEntry{mountPoint: unescapeMount(head[4]), fsType: tail[0], source: unescapeMount(tail[1])}
		if len(tail) == 3 {
			m.options = splitMountOptions(tail[2])
		}
		out = append(out, m)
	}
	return out, s.Err()
}

// splitMountOptions splits at commas. Overlay escapes commas in paths with a
// backslash, which the table shows as \134 or as itself.
func splitMountOptions(s string) map[string]string {
	out := map[string]string{}
	var cur strings.Builder
	flush := func() {
		k, v, _ := strings.Cut(cur.String(), "=")
		if k != "" {
			out[k] = v
		}
		cur.Reset()
	}
	s = unescapeMount(s)
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s) && (s[i+1] == ',' || s[i+1] == '\\'):
			i++
			cur.WriteByte(s[i])
		case s[i] == ',':
			flush()
		default:
			cur.WriteByte(s[i])
		}
	}
	flush()
	return out
}

// unescapeMount undoes the octal escapes of mount tables (space, tab, newline,
// backslash, number sign).
func unescapeMount(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && octal(s[i+1]) && octal(s[i+2]) && octal(s[i+3]) && s[i+1] < '4' {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func octal(c byte) bool { return c >= '0' && c <= '7' }
