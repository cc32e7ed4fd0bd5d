package engine

import (
	"encoding/json"
	"fmt"
)

// object is a JSON object whose fields are kept as the engine wrote them, so
// that what this code does not know survives a round trip.
type object map[string]json.RawMessage

func parseObject(b json.RawMessage) (object, error) {
	o := object{}
	if len(b) == 0 || string(b) == "null" {
		return o, nil
	}
	if err := json.Unmarshal(b, &o); err != nil {
		return nil, fmt.Errorf("the engine's answer is not of the known form: %w", err)
	}
	return o, nil
}

// read decodes one field; a missing one leaves out as it is.
func (o object) read(field string, out any) error {
	v, ok := o[field]
	if !ok {
		return nil
	}
	if err := json.Unmarshal(v, out); err != nil {
		return fmt.Errorf("field %s: %w", field, err)
	}
	return nil
}

// text is a string field; empty where it is missing or no string.
func (o object) text(field string) string {
	var s string
	_ = o.read(field, &s)
	return s
}

// set encodes v, which is of this package's own making and always encodes.
func (o object) set(field string, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic("engine: encode field " + field + ": " + err.Error())
	}
	o[field] = b
}

func (o object) raw() json.RawMessage {
	b, err := json.Marshal(o)
	if err != nil {
		panic("engine: encode object: " + err.Error())
	}
	return b
}

// empty reports whether a field is missing or holds nothing.
func (o object) empty(field string) bool {
	switch string(o[field]) {
	case "", "null", `""`, "[]", "{}", "0", "false":
		return true
	}
	return false
}
