package main

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// rawOf are the bytes of a name that is not UTF-8, nil of any other: JSON has no way
// to write them, so they go, as base64, into a member of their own beside the text.
func rawOf(name string) []byte {
	if utf8.ValidString(name) {
		return nil
	}
	return []byte(name)
}

// unescape takes back what ui.Clean does to names, so that one can be copied from a
// list: \xff, \n, \t, \u202e. Any other backslash stays, for it belongs to a pattern;
// so does an escaped backslash with what follows.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); {
		raw, n := escaped(s[i:])
		b.WriteString(raw)
		i += n
	}
	return b.String()
}

// escaped is what s begins with, and how many bytes of s say so.
func escaped(s string) (raw string, n int) {
	if s[0] != '\\' || len(s) < 2 {
		return s[:1], 1
	}
	switch s[1] {
	case 'n':
		return "\n", 2
	case 't':
		return "\t", 2
	case 'x':
		if v, ok := hexOf(s, 4); ok && (v < ' ' || v > '~') { // else nobody wrote it so
			return string([]byte{byte(v)}), 4
		}
	case 'u':
		if v, ok := hexOf(s, 6); ok && v > '~' {
			return string(rune(v)), 6
		}
	}
	return s[:2], 2
}

// hexOf reads the hexadecimal digits from the third byte of s to its end-th.
func hexOf(s string, end int) (uint64, bool) {
	if len(s) < end {
		return 0, false
	}
	v, err := strconv.ParseUint(s[2:end], 16, 32)
	return v, err == nil
}
