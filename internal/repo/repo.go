package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"filippo.io/age"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"lifeboat/internal/dr"
	"lifeboat/internal/pack"
	"lifeboat/internal/repo/readlog"
	"lifeboat/internal/seal"
	"lifeboat/internal/store"
)

// HostKey is the key with which this host signs what it writes.
type HostKey = seal.HostKey

// LoadOrCreateHostKey returns the host key kept in dir, or draws one and keeps
// it there (seal.LoadOrCreateHostKey).
func LoadOrCreateHostKey(dir string) (*HostKey, error) { return seal.LoadOrCreateHostKey(dir) }

// Expected is what the recovery kit says of a repository.
type Expected struct {
	Repo        dr.RepoID
	Fingerprint seal.Fingerprint
	// Witnesses recognise the data keys that there were, by generation
	// (Repo.Witnesses); nil where the kit has none.
	Witnesses map[seal.Generation]string
}

// Local says where a host keeps what it remembers of repositories.
type Local struct {
	// Location names the repository to this host (its URL, without login). What
	// is pinned is pinned under this name.
	Location string
	// StateDir keeps pins and marks; losing it loses no snapshot. "" keeps them
	// in memory: nothing is remembered after Close.
	StateDir string
	// CacheDir keeps disposable index caches. "" means a temporary directory
	// that Close removes.
	CacheDir string
}

// CreateOptions say how to create a repository.
type CreateOptions struct {
	Local
	// Recipients of the repository's key; at least one.
	Recipients []seal.Recipient
	// Host is enrolled at once; nil creates the repository without a host.
	// HostName is for people (the host's or site's name).
	Host     *HostKey
	HostName string
	// Log may be nil; Notice receives lines for the operator, may be nil.
	Log    *slog.Logger
	Notice func(string)
}

// OpenOptions say how to open a repository.
type OpenOptions struct {
	Local
	// Identities and Passphrase open the repository's key. Passphrase is asked
	// at most once, and only if no identity fits; may be nil.
	Identities []age.Identity
	Passphrase func() (string, error)
	// Host signs what is written; nil means that nothing is. HostName is for
	// people (the host's or site's name).
	Host     *HostKey
	HostName string
	// Expect is compared with what is found, beside what is pinned; may be nil.
	Expect *Expected
	// KeysFrom are registries whose key records open the repository where its own are
	// damaged or gone (ErrKeysDamaged): for whoever repairs it. What this host has
	// pinned, here and there, and what the kit says has to hold for them.
	KeysFrom []KeySource
	// Marks are numbers known to exist (Repo.Marks, from a recovery kit).
	Marks map[string]dr.Number
	// ForRepair: key records that this host keeps open the repository also where the
	// registry does not list them, for whoever repairs it. KeysFrom imply it.
	ForRepair bool
	// AcceptOlder forgets the marks of this host, and Marks: what the repository
	// shows now is taken as its newest state. The operator decides that, after a registry
	// was restored from a backup of its own, say. Numbers of snapshots and
	// of key records that were seen are given to no others all the same. It is refused
	// (ErrKeysDamaged) while this host keeps a newer key record than is shown.
	AcceptOlder bool
	// Log may be nil; Notice receives lines for the operator, may be nil.
	Log    *slog.Logger
	Notice func(string)
}

// Repo is an open repository. Safe for concurrent use. Close frees it.
type Repo struct {
	st     store.Store
	opts   OpenOptions
	log    *slog.Logger
	state  *state
	codec  *pack.Codec
	ring   atomic.Pointer[seal.Ring]
	keys   atomic.Pointer[keyState]
	hosts  *hostBook
	idx    *indexes
	cache  string
	tmpDir string
	spare  sync.Pool // of *groupMemory

	readsMu sync.Mutex
	reads   *readlog.Log // opened when it is first asked for
	// rehearsals are closed with this.
	rehearsals []*Repo

	emptyMu   sync.Mutex
	emptyDone bool

	withheldOnce sync.Once // a key record that the registry withholds was told
	behindOnce   sync.Once
	keysOnce     sync.Once // a copy of a key record that opened it was told
	passedOnce   sync.Once // a newer key record that is passed over was told

	waited   sync.Map // the tags that were waited for (getListed)
	patience atomic.Int32

	// walkRoot stands in for the catalogs of a root record in tests that have none.
	walkRoot func(root *dr.Root, visit func(dr.UnitID) error) error
}

// Create makes a repository in an empty name and opens it. dr.ErrHeld when
// there is one already; nothing is changed then. A Create whose outcome is
// unknown (dr.ErrOutcomeUnknown) may be repeated: it then either succeeds or
// reports the repository that the first one made.
func Create(ctx context.Context, st store.Store, o CreateOptions) (*Repo, error) {
	if len(o.Recipients) == 0 {
		return nil, fmt.Errorf("create repository: nobody could open it: give a recipient or a passphrase: %w", dr.ErrUsage)
	}
	tags, err := st.Tags(ctx, "")
	if err != nil {
		return nil, fmt.Errorf("create repository: look for an existing one: %w", err)
	}
	for _, t := range tags {
		if p, err := ParseTag(t); err == nil && p.Class == ClassKey {
			return nil, fmt.Errorf("create repository: %s holds one already (tag %s): %w", o.Location, t, dr.ErrHeld)
		}
	}
	r, err := newRepo(st, OpenOptions{Local: o.Local, Host: o.Host, HostName: o.HostName, Log: o.Log, Notice: o.Notice})
	if err != nil {
		return nil, err
	}
	if err := r.create(ctx, o.Recipients); err != nil {
		return nil, errors.Join(fmt.Errorf("create repository: %w", err), r.Close())
	}
	return r, nil
}

func (r *Repo) create(ctx context.Context, recipients []seal.Recipient) error {
	secret := seal.NewSecret()
	wraps, err := wrapAll(secret, recipients)
	if err != nil {
		return err
	}
	if err := r.putEmpty(ctx); err != nil {
		return err
	}
	rec, err := r.putKeyRecord(ctx, secret, 1, 0, wraps)
	if errors.Is(err, store.ErrTagTaken) {
		return fmt.Errorf("somebody else created it at the same time: %w: %w", dr.ErrHeld, err)
	}
	if err != nil {
		return err
	}
	if err := r.adoptCopy(secret, rec); err != nil {
		return err
	}
	if r.opts.Host == nil {
		return nil
	}
	return r.enrolForWriting(ctx)
}

// Open opens a repository. Errors: dr.ErrNotFound when there is none,
// dr.ErrWrongKey when the key at hand does not open it, dr.ErrTampered when it
// is not the repository that this host or the recovery kit knows, or an older
// state of it; else those of the store.
func Open(ctx context.Context, st store.Store, o OpenOptions) (*Repo, error) {
	r, err := newRepo(st, o)
	if err != nil {
		return nil, err
	}
	if err := r.open(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open repository %s: %w", o.Location, err), r.Close())
	}
	return r, nil
}

func (r *Repo) open(ctx context.Context) error {
	return r.refreshKeys(ctx)
}

func newRepo(st store.Store, o OpenOptions) (*Repo, error) {
	if o.StateDir != "" && o.Location == "" {
		return nil, fmt.Errorf("a repository without a location cannot be pinned: %w", dr.ErrUsage)
	}
	r := &Repo{st: st, opts: o, log: o.Log, state: newState(o.StateDir), cache: o.CacheDir}
	if r.log == nil {
		r.log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	if o.Passphrase != nil {
		r.opts.Passphrase = sync.OnceValues(o.Passphrase)
	}
	r.hosts = &hostBook{repo: r}
	r.idx = newIndexes(r)
	var err error
	if r.cache == "" {
		if r.cache, err = os.MkdirTemp("", "lifeboat-cache-"); err != nil {
			return nil, fmt.Errorf("index cache: %w", err)
		}
		r.tmpDir = r.cache
	}
	if r.codec, err = pack.NewCodec(runtime.GOMAXPROCS(0)); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// Close frees memory, mapped files and temporary directories. Writers and
// readers of the repository must be closed before.
func (r *Repo) Close() error {
	err := r.idx.close()
	r.readsMu.Lock()
	for _, c := range r.rehearsals {
		err = errors.Join(err, c.Close())
	}
	r.rehearsals = nil
	if r.reads != nil {
		err = errors.Join(err, r.reads.Close())
		r.reads = nil
	}
	r.readsMu.Unlock()
	if r.codec != nil {
		r.codec.Close()
		r.codec = nil
	}
	if r.tmpDir != "" {
		err = errors.Join(err, os.RemoveAll(r.tmpDir))
	}
	return err
}

// ID is the repository's id.
func (r *Repo) ID() dr.RepoID { return r.keyring().Repo() }

// Fingerprint identifies the repository's fixed keys, for the recovery kit.
func (r *Repo) Fingerprint() seal.Fingerprint { return r.keyring().Secret().Fingerprint() }

// CutKey is the key of content-defined cutting and of path hashes. It is secret.
func (r *Repo) CutKey() [32]byte { return r.keyring().Secret().CutKey() }

// UnitID is the id that a unit with this content has.
func (r *Repo) UnitID(data []byte) dr.UnitID { return r.keyring().UnitID(data) }

// HostID is who signs what is written; zero when nothing is.
func (r *Repo) HostID() dr.HostID {
	if r.opts.Host == nil {
		return dr.HostID{}
	}
	return r.opts.Host.ID()
}

// Marks returns the highest number verified so far under each tag prefix ("e.shop."),
// for the recovery kit: a repository that shows less has been set back.
func (r *Repo) Marks() (map[string]dr.Number, error) { return r.state.allMarks() }

// Witnesses recognise the data keys that there are, by generation: whoever was
// removed knows the fixed keys, but not those of later generations. For the
// recovery kit.
func (r *Repo) Witnesses() map[seal.Generation]string { return witnesses(r.keyring().Secret()) }

func witnesses(s *seal.Secret) map[seal.Generation]string {
	out := map[seal.Generation]string{}
	for _, g := range s.Generations() {
		if w, ok := s.Witness(g); ok {
			out[g] = fmt.Sprintf("%x", w)
		}
	}
	return out
}

func (r *Repo) keyring() *seal.Ring { return r.ring.Load() }

// notice tells the operator something.
func (r *Repo) notice(text string) {
	r.log.Info("notice", "text", text)
	if r.opts.Notice != nil {
		r.opts.Notice(text)
	}
}

// putEmpty stores the OCI empty blob once.
func (r *Repo) putEmpty(ctx context.Context) error {
	r.emptyMu.Lock()
	defer r.emptyMu.Unlock()
	if r.emptyDone {
		return nil
	}
	d := emptyDescriptor()
	if _, err := r.st.PutBlob(ctx, d.Digest, d.Size, openBytes([]byte(emptyBlob))); err != nil {
		return fmt.Errorf("store the empty blob: %w", err)
	}
	r.emptyDone = true
	return nil
}

// putRecordManifest stores a record under a tag, after making sure that the
// blob that its manifest names is there.
func (r *Repo) putRecordManifest(ctx context.Context, t Tag, record []byte) (raw []byte, err error) {
	raw, err = encodeRecordManifest(t.Class, record)
	if err != nil {
		return nil, err
	}
	for range 2 {
		if err := r.putEmpty(ctx); err != nil {
			return nil, err
		}
		_, err = r.st.PutManifest(ctx, t.String(), ocispec.MediaTypeImageManifest, raw)
		if !errors.Is(err, store.ErrIncomplete) {
			break
		}
		// A collector took the empty blob meanwhile: send it again.
		r.emptyMu.Lock()
		r.emptyDone = false
		r.emptyMu.Unlock()
	}
	return raw, err
}

// adopt takes a secret and its record as the repository's, and pins it.
func (r *Repo) adopt(s *seal.Secret, rec *seal.KeyRecord) error {
	if err := r.state.use(s.Repo()); err != nil {
		return err
	}
	p := pin{Location: r.opts.Location, Repo: s.Repo(), Fingerprint: s.Fingerprint(), Witnesses: witnesses(s)}
	old, err := r.state.loadPin(r.opts.Location)
	if err != nil {
		return err
	}
	if r.ring.Load() == nil {
		// Before anything is compared: what the kit knows counts for the key record,
		// too.
		if r.opts.AcceptOlder {
			err = r.acceptShown(s, rec, old)
		} else {
			if err = r.state.recall(); err == nil { // else both say the same
				err = r.trustKit()
			}
		}
		if err != nil {
			return err
		}
	}
	if err := r.checkNewestKey(rec); err != nil {
		return err
	}
	if old != nil && store.Lagging(r.st) {
		// A mirror that lacks a key generation does not make this host forget it.
		for g, w := range old.Witnesses {
			p.Witnesses[g] = w
		}
	}
	if old == nil || !maps.Equal(old.Witnesses, p.Witnesses) {
		if err := r.state.savePin(p); err != nil {
			return err
		}
	}
	r.ring.Store(seal.NewRing(s))
	r.keys.Store(&keyState{number: rec.Number, record: rec})
	return nil
}
