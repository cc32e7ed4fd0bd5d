package dr

import (
	"encoding/hex"
	"fmt"
)

// UnitID is the keyed BLAKE3 hash of a unit's content (docs/format.md, Units).
type UnitID [32]byte

// SnapshotID is the UnitID of the snapshot's root record. It stays the same
// when packs are compacted and manifests are rewritten.
type SnapshotID [32]byte

// HostID is the Ed25519 public key of a host that writes into a repository.
// Identity is a key, never a host name.
type HostID [32]byte

// RepoID is drawn at random when a repository is created and is bound into
// everything that is sealed for it.
type RepoID [16]byte

// Epoch is the fencing number of a system. It only grows; 0 means none yet.
type Epoch uint64

// Number is the running number in the tags of one class (dense, from 1).
type Number uint64

// UnitRef names a unit together with its length in bytes.
type UnitRef struct {
	ID  UnitID `json:"id"`
	Len uint32 `json:"len"`
}

// MaxUnit is the largest unit, in bytes, that a repository holds.
const MaxUnit = 8 << 20

func (id UnitID) String() string     { return hex.EncodeToString(id[:]) }
func (id SnapshotID) String() string { return hex.EncodeToString(id[:]) }
func (id HostID) String() string     { return hex.EncodeToString(id[:]) }
func (id RepoID) String() string     { return hex.EncodeToString(id[:]) }

// Short is the form shown to people: the first 12 hexadecimal digits.
func (id SnapshotID) Short() string { return hex.EncodeToString(id[:6]) }

// Short is the form shown to people: the first 12 hexadecimal digits.
func (id HostID) Short() string { return hex.EncodeToString(id[:6]) }

// IsZero reports whether the id was never set.
func (id SnapshotID) IsZero() bool { return id == SnapshotID{} }

func (id UnitID) MarshalText() ([]byte, error)     { return marshalHex(id[:]), nil }
func (id *UnitID) UnmarshalText(b []byte) error    { return unmarshalHex("unit id", id[:], b) }
func (id SnapshotID) MarshalText() ([]byte, error) { return marshalHex(id[:]), nil }
func (id *SnapshotID) UnmarshalText(b []byte) error {
	return unmarshalHex("snapshot id", id[:], b)
}
func (id HostID) MarshalText() ([]byte, error)  { return marshalHex(id[:]), nil }
func (id *HostID) UnmarshalText(b []byte) error { return unmarshalHex("host id", id[:], b) }
func (id RepoID) MarshalText() ([]byte, error)  { return marshalHex(id[:]), nil }
func (id *RepoID) UnmarshalText(b []byte) error { return unmarshalHex("repository id", id[:], b) }

func marshalHex(b []byte) []byte { return hex.AppendEncode(nil, b) }

func unmarshalHex(what string, dst, src []byte) error {
	if len(src) != 2*len(dst) {
		return fmt.Errorf("%s: %d characters, want %d", what, len(src), 2*len(dst))
	}
	if _, err := hex.Decode(dst, src); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// ParseSnapshotID reads the full 64-digit form. Prefixes are resolved by the
// repository, which knows the snapshots.
func ParseSnapshotID(s string) (SnapshotID, error) {
	var id SnapshotID
	err := id.UnmarshalText([]byte(s))
	return id, err
}
