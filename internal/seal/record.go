package seal

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"lifeboat/internal/dr"
)

// MaxRecord bounds a record, sealed or not, in bytes.
const MaxRecord = 1 << 20

const (
	recordMagic  = "LBRC"
	recordHeader = 4 + 1 + 4 + 12 // magic, version, generation, nonce
)

// SealRecord seals plain for tag with the newest data key.
func (r *Ring) SealRecord(tag string, plain []byte) ([]byte, error) {
	if len(plain) > MaxRecord-recordHeader-Overhead {
		return nil, fmt.Errorf("seal record %s: %d bytes, the most is %d", tag, len(plain), MaxRecord-recordHeader-Overhead)
	}
	a, err := r.aead("lifeboat v1 record", r.Generation(), nil)
	if err != nil {
		return nil, fmt.Errorf("seal record %s: %w", tag, err)
	}
	out := make([]byte, recordHeader, recordHeader+len(plain)+Overhead)
	copy(out, recordMagic)
	out[4] = 1
	binary.BigEndian.PutUint32(out[5:], uint32(r.Generation()))
	fill(out[9:recordHeader])
	return a.Seal(out, out[9:recordHeader], plain, r.recordData(tag)), nil
}

// OpenRecord opens what SealRecord made for the same tag and repository. The
// error wraps dr.ErrTampered, or is ErrGeneration.
func (r *Ring) OpenRecord(tag string, sealed []byte) ([]byte, error) {
	if len(sealed) < recordHeader+Overhead || len(sealed) > MaxRecord ||
		string(sealed[:4]) != recordMagic || sealed[4] != 1 {
		return nil, fmt.Errorf("record %s: not a sealed record of version 1: %w", tag, dr.ErrTampered)
	}
	a, err := r.aead("lifeboat v1 record", Generation(binary.BigEndian.Uint32(sealed[5:])), nil)
	if err != nil {
		return nil, fmt.Errorf("record %s: %w", tag, err)
	}
	plain, err := a.Open(nil, sealed[9:recordHeader], sealed[recordHeader:], r.recordData(tag))
	if err != nil {
		return nil, fmt.Errorf("record %s: %w", tag, ErrOpen)
	}
	return plain, nil
}

func (r *Ring) recordData(tag string) []byte {
	return append(r.secret.repo[:], tag...)
}

// Sign appends the member "sig" to a JSON object whose member "host" is the
// signer's id: Ed25519 over a context, the repository, the tag and the object.
func (k *HostKey) Sign(repo dr.RepoID, tag string, object []byte) ([]byte, error) {
	host, err := hostOf(object)
	if err != nil {
		return nil, fmt.Errorf("sign record %s: %w", tag, err)
	}
	if host != k.ID() {
		return nil, fmt.Errorf("sign record %s: its host is %s, the key at hand is of %s", tag, host.Short(), k.ID().Short())
	}
	return appendLast(object, "sig", ed25519.Sign(k.private, recordMessage(repo, tag, object))), nil
}

// VerifySigned checks the signature of a JSON object made by Sign and returns
// who signed it and the object without the signature. Whether that host is
// trusted is the caller's question. The error wraps dr.ErrTampered.
func VerifySigned(repo dr.RepoID, tag string, signed []byte) (dr.HostID, []byte, error) {
	bad := func(err error) (dr.HostID, []byte, error) {
		return dr.HostID{}, nil, fmt.Errorf("record %s: %w: %w", tag, err, dr.ErrTampered)
	}
	object, sig, err := splitLast(signed, "sig", ed25519.SignatureSize)
	if err != nil {
		return bad(err)
	}
	host, err := hostOf(object)
	if err != nil {
		return bad(err)
	}
	if !ed25519.Verify(host[:], recordMessage(repo, tag, object), sig) {
		return bad(fmt.Errorf("the signature of host %s is wrong", host.Short()))
	}
	return host, object, nil
}

func hostOf(object []byte) (dr.HostID, error) {
	var h struct {
		Host *dr.HostID `json:"host"`
	}
	if err := json.Unmarshal(object, &h); err != nil {
		return dr.HostID{}, err
	}
	if h.Host == nil {
		return dr.HostID{}, errors.New("no host named")
	}
	return *h.Host, nil
}

// recordMessage is unambiguous: contexts are constants, the id has a fixed
// length, and no tag holds the brace with which the object begins.
func recordMessage(repo dr.RepoID, tag string, object []byte) []byte {
	m := append([]byte("lifeboat v1 record"), repo[:]...)
	m = append(m, tag...)
	return append(m, object...)
}

// appendLast adds a last member to a JSON object of at least one member. The
// exact bytes before it stay what was signed, so members that a later version
// adds do not break an older reader.
func appendLast(object []byte, name string, value []byte) []byte {
	out := bytes.TrimSuffix(bytes.Clone(object), []byte("}"))
	return fmt.Appendf(out, `,"%s":"%s"}`, name, b64(value))
}

// splitLast undoes appendLast: value has size bytes.
func splitLast(signed []byte, name string, size int) (object, value []byte, err error) {
	head := fmt.Sprintf(`,"%s":"`, name)
	at := len(signed) - len(head) - base64.StdEncoding.EncodedLen(size) - len(`"}`)
	if at < 2 || signed[0] != '{' || !bytes.HasPrefix(signed[at:], []byte(head)) || !bytes.HasSuffix(signed, []byte(`"}`)) {
		return nil, nil, fmt.Errorf("does not end in a member %q", name)
	}
	value, err = base64.StdEncoding.Strict().DecodeString(string(signed[at+len(head) : len(signed)-2]))
	if err != nil || len(value) != size {
		return nil, nil, fmt.Errorf("member %q is not %d bytes of base64", name, size)
	}
	return append(bytes.Clone(signed[:at]), '}'), value, nil
}
