package repo

import (
	"bytes"
	"encoding/json"
	"errors"

	"github.com/opencontainers/go-digest"
)

// wireManifest is what is read of a manifest or index. Lists and annotations
// stay as they came until their length was looked at: 4 MiB of "{}," would become
// hundreds of MiB of descriptors.
type wireManifest struct {
	MediaType    string          `json:"mediaType"`
	ArtifactType string          `json:"artifactType"`
	Layers       json.RawMessage `json:"layers"`
	Manifests    json.RawMessage `json:"manifests"`
	Annotations  json.RawMessage `json:"annotations"`
}

// wireDescriptor is what is read of a descriptor.
type wireDescriptor struct {
	MediaType string        `json:"mediaType"`
	Digest    digest.Digest `json:"digest"`
	Size      int64         `json:"size"`
}

// maxAnnotations is how many a manifest may have; one is looked for.
const maxAnnotations = 64

// errTooMany: a list has more members than it may.
var errTooMany = errors.New("it has too many members")

// descriptors decodes a list of at most most descriptors.
func descriptors(raw json.RawMessage, most int) ([]wireDescriptor, error) {
	var out []wireDescriptor
	err := eachMember(raw, '[', func(dec *json.Decoder) error {
		if len(out) == most {
			return errTooMany
		}
		var d wireDescriptor
		if err := dec.Decode(&d); err != nil {
			return err
		}
		out = append(out, d)
		return nil
	})
	return out, err
}

// annotation returns one annotation, "" where it is not there. The others are
// not kept.
func annotation(raw json.RawMessage, key string) (string, error) {
	var found string
	n := 0
	err := eachMember(raw, '{', func(dec *json.Decoder) error {
		if n++; n > maxAnnotations {
			return errTooMany
		}
		k, err := dec.Token()
		if err != nil {
			return err
		}
		if k == key {
			return dec.Decode(&found)
		}
		var other json.RawMessage
		return dec.Decode(&other)
	})
	return found, err
}

// eachMember calls one for each member of a JSON array or object; one consumes
// it. No value, or null, has none.
func eachMember(raw json.RawMessage, open json.Delim, one func(*json.Decoder) error) error {
	if len(raw) == 0 {
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	t, err := dec.Token()
	if err != nil || t == nil {
		return err
	}
	if t != open {
		return errors.New("it is of another type")
	}
	for dec.More() {
		if err := one(dec); err != nil {
			return err
		}
	}
	return nil
}
