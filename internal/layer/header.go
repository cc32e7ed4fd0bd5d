package layer

import (
	"bytes"
	"math"
	"strconv"
	"strings"
)

// blockSize is the unit of a tar archive, in bytes.
const blockSize = 512

// header is what the splitter wants to know of a tar header block.
type header struct {
	typeflag byte
	size     int64
	name     string
	extended bool // old GNU sparse: blocks with more of the map follow
}

var zeroBlock [blockSize]byte

// parseHeader reads a header block of any tar dialect. It is lenient: what it
// gets wrong costs deduplication, never a byte.
func parseHeader(b []byte) (header, bool) {
	want, ok := parseNumber(b[148:156])
	if !ok {
		return header{}, false
	}
	// Some old programs summed the bytes as signed numbers.
	var unsigned, signed int64
	for i, c := range b[:blockSize] {
		if 148 <= i && i < 156 {
			c = ' '
		}
		unsigned += int64(c)
		signed += int64(int8(c))
	}
	if want != unsigned && want != signed {
		return header{}, false
	}
	h := header{typeflag: b[156], name: cString(b[:100])}
	if h.size, ok = parseNumber(b[124:136]); !ok || h.size < 0 {
		return header{}, false
	}
	switch {
	case bytes.Equal(b[257:263], []byte("ustar\x00")):
		if prefix := cString(b[345:500]); prefix != "" {
			h.name = prefix + "/" + h.name
		}
	case bytes.Equal(b[257:265], []byte("ustar  \x00")):
		h.extended = h.typeflag == 'S' && b[482] != 0
	}
	return h, true
}

// body says what follows the header: nothing, a body that describes the next
// entry, or the content of a file.
func (h header) body() (described, content bool) {
	switch h.typeflag {
	case '1', '2', '3', '4', '5', '6':
		return false, false
	case 'x', 'g', 'L', 'K':
		return true, false
	}
	return false, true
}

// parseNumber reads an octal or base-256 field.
func parseNumber(b []byte) (int64, bool) {
	if b[0]&0x80 != 0 {
		negative := b[0]&0x40 != 0
		var v uint64
		for i, c := range b {
			if i == 0 {
				if c &= 0x3f; negative {
					return 0, false
				}
			}
			if v > math.MaxInt64>>8 {
				return 0, false
			}
			v = v<<8 | uint64(c)
		}
		return int64(v), true
	}
	field := strings.Trim(cString(b), " ")
	if field == "" {
		return 0, true
	}
	v, err := strconv.ParseUint(field, 8, 63)
	return int64(v), err == nil
}

func cString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// overrides are what an extension header says of the entry after it.
type overrides struct {
	name string
	size int64 // -1: nothing
}

// parsePAX takes path and size out of the records of a PAX header. It stops at
// the first record that is not well formed.
func (o *overrides) parsePAX(b []byte) {
	for len(b) > 0 {
		sp := bytes.IndexByte(b, ' ')
		if sp < 1 || sp > 10 {
			return
		}
		n, err := strconv.Atoi(string(b[:sp]))
		if err != nil || n <= sp+1 || n > len(b) {
			return
		}
		key, value, ok := strings.Cut(strings.TrimSuffix(string(b[sp+1:n]), "\n"), "=")
		if !ok {
			return
		}
		switch key {
		case "path":
			o.name = value
		case "size":
			if v, err := strconv.ParseInt(value, 10, 64); err == nil && v >= 0 {
				o.size = v
			}
		}
		b = b[n:]
	}
}
