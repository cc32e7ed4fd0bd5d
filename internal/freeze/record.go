package freeze

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/internal/dr"
)

// record is what is written and synced before anything is frozen, one file for
// each freeze, so that Sweep finds what is left if parent and guardians are all
// killed. Its holder keeps the file locked (flock), and the guardians inherit
// the lock; the kernel drops it when the last of them is dead. An empty file
// means that everything is thawed.
type record struct {
	Version int    `json:"version"`
	BootID  string `json:"boot_id"`
	// Boottime is CLOCK_BOOTTIME in nanoseconds when it was written.
	Boottime int64 `json:"boottime_ns"`
	// FreezeMax in nanoseconds.
	FreezeMax  int64             `json:"freeze_max_ns"`
	Containers []recordContainer `json:"containers"`
}

type recordContainer struct {
	ID   string `json:"id"`
	Name string `json:"name,omitempty"`
	// Cgroup is the version of the hierarchy, 0 if paused through the engine.
	Cgroup int    `json:"cgroup"`
	Path   string `json:"path,omitempty"`
	Inode  uint64 `json:"inode,omitempty"`
}

const (
	recordVersion = 1
	recordPrefix  = "freeze-"
	recordSuffix  = ".json"
	lockName      = "freeze.lock"
	maxRecord     = 1 << 20
)

// encode ends the document with a line feed: a record without it was cut off
// while being written, which means that nothing was frozen yet.
func (r record) encode() ([]byte, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode freeze record: %w", err)
	}
	return append(b, '\n'), nil
}

var errUnfinished = errors.New("unfinished record")

func decodeRecord(b []byte) (record, error) {
	var r record
	if len(b) == 0 || b[len(b)-1] != '\n' {
		return r, errUnfinished
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return r, fmt.Errorf("freeze record: %w", err)
	}
	if r.Version != recordVersion {
		return r, fmt.Errorf("freeze record has version %d, this Lifeboat knows %d", r.Version, recordVersion)
	}
	for _, c := range r.Containers {
		if err := (Container{ID: c.ID, Name: c.Name}).validate(); err != nil {
			return r, fmt.Errorf("freeze record: %w", err)
		}
		if c.Cgroup == 0 {
			continue
		}
		own := Container{ID: c.ID}.within("/" + c.Path)
		if c.Cgroup != 1 && c.Cgroup != 2 || own != "/"+c.Path || !filepath.IsLocal(c.Path) {
			return r, fmt.Errorf("freeze record: container %s: cgroup %q is not its own", c.ID, c.Path)
		}
	}
	return r, nil
}

// overdue tells whether the freeze must long be over, whoever holds the record.
func (r record) overdue(now int64) bool {
	return now > r.Boottime+r.FreezeMax+int64(startTimeout+overdueAfter)
}

// overdueAfter is the time beyond start and freeze_max after which the holder
// of a record is taken to be stuck.
const overdueAfter = 10 * time.Second

func boottime() (int64, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0, fmt.Errorf("read the clock: %w", err)
	}
	return ts.Nano(), nil
}

// lockState takes the lock under which records are made and swept; it is held
// for milliseconds. unlock gives it back.
func lockState(ctx context.Context, dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the freeze state: %w", err)
	}
	for {
		err := flock(f)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, dr.ErrHeld) || ctx.Err() != nil {
			f.Close()
			return nil, fmt.Errorf("lock the freeze state in %s: %w", dir, err)
		}
		pause(ctx, 10*time.Millisecond)
	}
}

// flock takes an exclusive lock or says dr.ErrHeld.
func flock(f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EWOULDBLOCK):
			return dr.ErrHeld
		}
		return err
	}
}

// held is a record that this process holds.
type held struct {
	file *os.File
	path string
}

// register sweeps leftovers, refuses containers that another live Lifeboat has
// frozen, looks which containers stand still already, and writes the record,
// durably, file and directory.
func register(ctx context.Context, s *Set, o Options) (*held, error) {
	if err := os.MkdirAll(o.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("freeze state: %w", err)
	}
	unlock, err := lockState(ctx, o.StateDir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	sw := sweeper{host: s.host, pauser: s.pauser, dir: o.StateDir}
	// What cannot be swept does not hinder a freeze of other containers; if it
	// is one of ours it stands still and counts as paused by somebody else.
	_, sweepErr := sw.sweep(ctx)
	if err := sw.conflict(s); err != nil {
		return nil, err
	}
	if err := s.look(ctx); err != nil {
		return nil, err
	}
	r, err := newRecord(s, o)
	if err != nil {
		return nil, err
	}
	if sweepErr != nil {
		o.Logger.Warn("sweep of an earlier freeze", "err", sweepErr)
	}
	return r.write(o.StateDir)
}

func newRecord(s *Set, o Options) (record, error) {
	r := record{Version: recordVersion, FreezeMax: int64(o.FreezeMax)}
	var err error
	if r.BootID, err = bootID(s.host); err != nil {
		return r, err
	}
	if r.Boottime, err = boottime(); err != nil {
		return r, err
	}
	for _, m := range s.members {
		if m.foreign {
			continue
		}
		c := recordContainer{ID: m.container.ID, Name: m.container.Name}
		if m.cgroup != nil {
			cg := m.cgroup.cgroup
			c.Cgroup, c.Path, c.Inode = cg.Version, cg.Path, cg.Inode
		}
		r.Containers = append(r.Containers, c)
	}
	return r, nil
}

// bootID is that of the host, or where there is none, of the own proc.
func bootID(h *Host) (string, error) {
	if h == nil {
		h = &Host{proc: "/proc"}
	}
	return h.bootID()
}

// write makes the file under its own name at once: the state is locked, and a
// record that was not finished is told by its missing end.
func (r record) write(dir string) (_ *held, err error) {
	b, err := r.encode()
	if err != nil {
		return nil, err
	}
	var name [8]byte
	if _, err := rand.Read(name[:]); err != nil {
		return nil, fmt.Errorf("freeze record: %w", err)
	}
	path := filepath.Join(dir, recordPrefix+hex.EncodeToString(name[:])+recordSuffix)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("freeze record: %w", err)
	}
	defer func() {
		if err != nil {
			f.Close()
			err = errors.Join(fmt.Errorf("freeze record: %w (nothing was frozen)", err), os.Remove(path))
		}
	}()
	if err := flock(f); err != nil {
		return nil, err
	}
	if _, err := f.Write(b); err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return nil, err
	}
	return &held{file: f, path: path}, nil
}

// finish removes the record of a freeze that is over.
func (h *held) finish() error {
	defer h.file.Close()
	if err := errors.Join(h.file.Truncate(0), os.Remove(h.path)); err != nil {
		return fmt.Errorf("remove freeze record: %w", err)
	}
	return nil
}

// keep leaves the record for Sweep: something is still frozen.
func (h *held) keep() { h.file.Close() }

// Sweep thaws what earlier freezes left frozen because their process and both
// guardians were killed; every command runs it first. It gives the containers
// that it thawed. stateDir is Options.StateDir; one that does not exist holds
// nothing.
//
// A container is thawed only if the record is of this boot, nobody holds it
// (or its freeze_max is long over), and its cgroup is the very one recorded.
// h may be nil where no cgroup can be reached, p where no engine can: what
// would need them stays recorded, and the error says so. The error wraps
// ErrStillFrozen if something could not be thawed.
func Sweep(ctx context.Context, h *Host, p Pauser, stateDir string) ([]Container, error) {
	if _, err := os.Stat(stateDir); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	unlock, err := lockState(ctx, stateDir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	sw := sweeper{host: h, pauser: p, dir: stateDir}
	return sw.sweep(ctx)
}

// sweeper works on the records of one directory, under its lock.
type sweeper struct {
	host   *Host
	pauser Pauser
	dir    string
	live   []record
}

func (sw *sweeper) sweep(ctx context.Context) ([]Container, error) {
	names, err := os.ReadDir(sw.dir)
	if err != nil {
		return nil, fmt.Errorf("list freeze records: %w", err)
	}
	var thawed []Container
	var problems []error
	for _, n := range names {
		if !strings.HasPrefix(n.Name(), recordPrefix) || !strings.HasSuffix(n.Name(), recordSuffix) || !n.Type().IsRegular() {
			continue
		}
		cs, err := sw.one(ctx, filepath.Join(sw.dir, n.Name()))
		thawed = append(thawed, cs...)
		if err != nil {
			problems = append(problems, fmt.Errorf("sweep %s: %w", n.Name(), err))
		}
	}
	return thawed, errors.Join(problems...)
}

func (sw *sweeper) one(ctx context.Context, path string) ([]Container, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // its holder just finished
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lockErr := flock(f)
	if lockErr != nil && !errors.Is(lockErr, dr.ErrHeld) {
		return nil, lockErr
	}
	b, err := io.ReadAll(io.LimitReader(f, maxRecord))
	if err != nil {
		return nil, err
	}
	r, err := decodeRecord(b)
	if errors.Is(err, errUnfinished) {
		if lockErr != nil {
			return nil, nil // its guardians are done and about to end
		}
		return nil, os.Remove(path)
	}
	if err != nil {
		return nil, fmt.Errorf("%w (look for frozen containers by hand, then remove %s)", err, path)
	}
	boot, err := bootID(sw.host)
	if err != nil {
		return nil, err
	}
	now, err := boottime()
	if err != nil {
		return nil, err
	}
	switch {
	case r.BootID != boot:
		return nil, os.Remove(path) // no freeze outlives its kernel
	case lockErr != nil && !r.overdue(now):
		sw.live = append(sw.live, r)
		return nil, nil
	}
	thawed, err := sw.thaw(ctx, r)
	if err != nil {
		return thawed, err
	}
	if lockErr != nil {
		return thawed, nil // its holder, stuck as it is, still owns the file
	}
	return thawed, os.Remove(path)
}

// conflict says dr.ErrHeld if another live freeze has a container of the set.
func (sw *sweeper) conflict(s *Set) error {
	for _, r := range sw.live {
		for _, c := range r.Containers {
			for _, m := range s.members {
				if m.container.ID == c.ID {
					return fmt.Errorf("container %s: another Lifeboat process has it frozen at this moment, try again when it is done: %w",
						m.container, dr.ErrHeld)
				}
			}
		}
	}
	return nil
}

func (sw *sweeper) thaw(ctx context.Context, r record) ([]Container, error) {
	var s Set
	var problems []error
	for _, c := range r.Containers {
		who := Container{ID: c.ID, Name: c.Name}
		b, err := sw.brake(c, who)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		if b != nil {
			s.members = append(s.members, &member{container: who, brake: b})
		}
	}
	defer s.Close()
	var mine Set
	var thawed []Container
	for _, m := range s.members {
		on, err := m.brake.set(ctx)
		if err != nil {
			problems = append(problems, fmt.Errorf("container %s: %w", m.container, err))
		}
		if on {
			mine.members = append(mine.members, m)
			thawed = append(thawed, m.container)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, thawPatience)
	defer cancel()
	if err := mine.Thaw(ctx); err != nil {
		problems = append(problems, err)
		thawed = nil
	}
	return thawed, errors.Join(problems...)
}

// brake opens the brake of a recorded container; nil if the container is gone.
func (sw *sweeper) brake(c recordContainer, who Container) (brake, error) {
	if c.Cgroup == 0 {
		if sw.pauser == nil {
			return nil, fmt.Errorf("container %s may be paused (by hand: docker unpause %s): no engine to ask", who, c.ID)
		}
		return &pauseBrake{pauser: sw.pauser, container: who}, nil
	}
	if sw.host == nil {
		return nil, fmt.Errorf("container %s may be frozen: %w", who, ErrUnreachable)
	}
	cg, err := sw.find(c, who)
	if cg == nil || err != nil {
		return nil, err
	}
	f, err := openFreezer(cg)
	switch {
	case errors.Is(err, errGone) || errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("container %s may be frozen: %w", who, err)
	}
	return &cgroupBrake{freezer: f, cgroup: cg, proc: sw.host.proc}, nil
}

// find looks a recorded cgroup up by its id and inode, wherever it lies: the
// record may have been written in a helper container that sees other mounts. It
// is nil if the hierarchy was seen as a whole and does not have it any more.
func (sw *sweeper) find(c recordContainer, who Container) (*Cgroup, error) {
	hierarchy := cgroupEntry{}
	if c.Cgroup == 1 {
		hierarchy.controllers = []string{"freezer"}
	}
	whole := false
	for _, m := range sw.host.mounts {
		if !m.controls(hierarchy) {
			continue
		}
		whole = whole || m.root == "/"
		cg := &Cgroup{Container: who, Version: c.Cgroup, Path: c.Path, Inode: c.Inode}
		err := filepath.WalkDir(m.point, func(p string, d fs.DirEntry, err error) error {
			switch {
			case errors.Is(err, fs.ErrNotExist) && p != m.point:
				return nil // went away meanwhile
			case err != nil:
				return err
			case !d.IsDir() || !who.componentOf(d.Name()):
				return nil
			}
			ino, err := inode(p)
			if err == nil && ino == c.Inode && unix.Access(filepath.Join(p, freezerFile(c.Cgroup)), unix.W_OK) == nil {
				cg.Dir = p
				return fs.SkipAll
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("container %s: look for its cgroup: %w", who, err)
		}
		if cg.Dir != "" {
			return cg, nil
		}
	}
	if !whole {
		return nil, fmt.Errorf("container %s may be frozen: no mount shows all cgroups of version %d: %w", who, c.Cgroup, ErrUnreachable)
	}
	return nil, nil
}
