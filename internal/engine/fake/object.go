package fake

import (
	"crypto/rand"
	"encoding/hex"
	"time"
)

// obj is a JSON object as the API has it.
type obj = map[string]any

func newID() string {
	var b [32]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

func str(o obj, field string) string {
	s, _ := o[field].(string)
	return s
}

func boolean(o obj, field string) bool {
	b, _ := o[field].(bool)
	return b
}

func number(o obj, field string) float64 {
	n, _ := o[field].(float64)
	return n
}

func sub(o obj, field string) obj {
	s, _ := o[field].(obj)
	return s
}

func strs(o obj, field string) []string {
	list, _ := o[field].([]any)
	var out []string
	for _, v := range list {
		if s, ok := v.(string); ok {
			out = append(out, s)
		}
	}
	if s, ok := o[field].([]string); ok {
		return s
	}
	return out
}

func objs(o obj, field string) []obj {
	list, _ := o[field].([]any)
	var out []obj
	for _, v := range list {
		if s, ok := v.(obj); ok {
			out = append(out, s)
		}
	}
	return out
}

// missing reports a field that holds nothing.
func missing(o obj, field string) bool {
	switch v := o[field].(type) {
	case nil:
		return true
	case string:
		return v == ""
	case []any:
		return len(v) == 0
	case []string:
		return len(v) == 0
	case obj:
		return len(v) == 0
	case float64:
		return v == 0
	}
	return false
}

func fill(o obj, field string, v any) {
	if missing(o, field) {
		o[field] = v
	}
}
