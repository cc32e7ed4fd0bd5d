package seal

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"lifeboat/internal/dr"
)

// HostKeyFile is the name of the host key in its directory.
const HostKeyFile = "host.key"

const hostKeyType = "PRIVATE KEY" // PKCS #8

// HostKey is the Ed25519 key with which a host signs what it writes. Safe for
// concurrent use.
type HostKey struct {
	private ed25519.PrivateKey
	id      dr.HostID
}

// NewHostKey draws a key that is kept nowhere.
func NewHostKey() *HostKey {
	seed := randomKey()
	return hostKeyOf(ed25519.NewKeyFromSeed(seed[:]))
}

func hostKeyOf(p ed25519.PrivateKey) *HostKey {
	k := &HostKey{private: p}
	copy(k.id[:], p.Public().(ed25519.PublicKey))
	return k
}

// ID is the host's identity, its public key.
func (k *HostKey) ID() dr.HostID { return k.id }

// String hides the private key.
func (k *HostKey) String() string { return "[key of host " + k.id.Short() + "]" }

// Format hides the private key from every verb of package fmt.
func (k *HostKey) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, k.String()) } // fmt.State does not fail

// LogValue hides the private key from every handler of log/slog.
func (k *HostKey) LogValue() slog.Value { return slog.StringValue(k.String()) }

// SignIndex signs the hash of an index (docs/format.md, Index).
func (k *HostKey) SignIndex(repo dr.RepoID, sum [32]byte) (sig [64]byte) {
	copy(sig[:], ed25519.Sign(k.private, indexMessage(repo, sum)))
	return sig
}

// VerifyIndex reports whether host signed the index with this hash.
func VerifyIndex(host dr.HostID, repo dr.RepoID, sum [32]byte, sig [64]byte) bool {
	return ed25519.Verify(host[:], indexMessage(repo, sum), sig[:])
}

func indexMessage(repo dr.RepoID, sum [32]byte) []byte {
	m := append([]byte("lifeboat v1 index"), repo[:]...)
	return append(m, sum[:]...)
}

// LoadOrCreateHostKey returns the host key kept in dir, or draws one and keeps
// it there: file host.key, PKCS #8 in PEM, mode 0600. dir is created with mode
// 0700. A key that exists is never replaced, also when two processes do this at
// once; a new one is durable on return. A key file that others can read is
// refused.
func LoadOrCreateHostKey(dir string) (*HostKey, error) {
	name := filepath.Join(dir, HostKeyFile)
	k, err := loadHostKey(name)
	if !errors.Is(err, fs.ErrNotExist) {
		return k, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create host key: %w", err)
	}
	if err := createHostKey(dir, name); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("create host key: %w", err)
	}
	return loadHostKey(name)
}

func loadHostKey(name string) (*HostKey, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read host key: %w", err)
	}
	defer func() { _ = f.Close() }() // read only
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read host key: %w", err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("host key %s has mode %#o: others can read it; if it may have leaked, delete it and revoke host, else chmod 600", name, st.Mode().Perm())
	}
	b, err := io.ReadAll(io.LimitReader(f, 1<<16))
	if err != nil {
		return nil, fmt.Errorf("read host key: %w", err)
	}
	bad := fmt.Errorf("host key %s is damaged; delete it to start with a new one, and revoke the old host: %w", name, dr.ErrTampered)
	block, _ := pem.Decode(b)
	if block == nil || block.Type != hostKeyType {
		return nil, bad
	}
	p, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, bad
	}
	priv, ok := p.(ed25519.PrivateKey)
	if !ok {
		return nil, bad
	}
	return hostKeyOf(priv), nil
}

// createHostKey writes a new key beside name and links it there, so that a key
// that another process made meanwhile is kept. (A rename would replace it.)
func createHostKey(dir, name string) (err error) {
	der, err := x509.MarshalPKCS8PrivateKey(NewHostKey().private)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, HostKeyFile+".*.tmp") // mode 0600
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ignoreMissing(os.Remove(f.Name()))) }()
	_, err = f.Write(pem.EncodeToMemory(&pem.Block{Type: hostKeyType, Bytes: der}))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), name); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
