package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/bench/chart"
	"lifeboat/bench/corpus"
	"lifeboat/lab/images"
)

const (
	largeFiles  = 1_000_000 // small files, with -scale 1
	largePerDir = 50
	dirtyBytes  = 10 << 30 // size of the file that is written while it is copied, with -scale 1
	dirtyRanges = 64       // where it has data; the rest are holes
	dirtyRange  = 16 << 20 // bytes of each
	dirtyName   = "big.ibd"
)

// largePoint is what one command took with a large system.
type largePoint struct {
	System  string `json:"system"`
	Command string `json:"command"`
	Sent    int64  `json:"sent_bytes,omitempty"`
	outcome
}

// largeResults are what Lifeboat alone takes for large systems.
type largeResults struct {
	Machine machine       `json:"machine"`
	Files   corpus.Totals `json:"files"`
	Dirty   int64         `json:"dirty_file_bytes"`
	Data    int64         `json:"dirty_file_data_bytes"` // the rest are holes
	Points  []largePoint  `json:"points"`
}

// large measures the memory and time of each command with a system of very many files, then snapshots
// of one whose very large file is being written.
func (s *stage) large(ctx context.Context, o options, save func(map[string][]byte) error) (err error) {
	r := &largeResults{}
	if r.Machine, err = lookAround(); err != nil {
		return err
	}
	l := &lifeboat{stage: s}
	if err := l.create(ctx, filepath.Join(s.dir, "large")); err != nil {
		return err
	}
	keep := func() error {
		r.Machine.load(&r.Machine.LoadAfter)
		files, err := r.files()
		if err != nil {
			return err
		}
		return save(files)
	}
	if err := errors.Join(s.beingWritten(ctx, r, l, o.scale), keep()); err != nil {
		return err
	}
	if err := errors.Join(s.manyFiles(ctx, r, l, max(largePerDir, int(largeFiles*o.scale))), keep()); err != nil {
		return err
	}
	fmt.Printf("%s", r.markdown())
	return l.registry.stop()
}

// note keeps what a command took.
func (r *largeResults) note(s *stage, system, command string, sent int64, o outcome) {
	r.Points = append(r.Points, largePoint{system, command, sent, o})
	s.log.Info("measured", "system", system, "command", command, "seconds", fmt.Sprintf("%.2f", o.Seconds),
		"peak", mega(o.Peak), "sent", mega(sent), "frozen_ms", fmt.Sprintf("%.1f", o.Frozen))
}

// take takes a snapshot and keeps what it took.
func (r *largeResults) take(ctx context.Context, l *lifeboat, system, command string) error {
	unix.Sync()
	o, err := l.snapshot(ctx, system)
	if err != nil {
		return err
	}
	r.note(l.stage, system, command, l.last.BytesSent, o)
	return nil
}

// manyFiles is every command with a system of n small files.
func (s *stage) manyFiles(ctx context.Context, r *largeResults, l *lifeboat, n int) (err error) {
	const system = "files"
	dir, err := s.volumeOf(ctx, system)
	if err != nil {
		return err
	}
	s.log.Info("making data", "files", n)
	if r.Files, err = s.unpack(ctx, system, volumeDir, func(w io.Writer) (corpus.Totals, error) { return writeMany(w, n, s.shape.Seed) }); err != nil {
		return err
	}
	var unmeasured outcome
	if _, err := l.run(ctx, &unmeasured, "protect", system, "--container", system); err != nil {
		return err
	}
	if err := r.take(ctx, l, system, "first snapshot"); err != nil {
		return err
	}
	if err := r.take(ctx, l, system, "snapshot, unchanged"); err != nil {
		return err
	}
	for i := 0; i < n; i += 100 {
		if err := os.WriteFile(filepath.Join(dir, manyName(i)), fmt.Appendf(nil, "changed %d", i), 0o640); err != nil {
			return err
		}
	}
	if err := r.take(ctx, l, system, "snapshot, 1 in 100 changed"); err != nil {
		return err
	}
	to := filepath.Join(s.dir, "large-restored")
	for _, c := range []struct {
		name string
		args []string
	}{
		{"restore", []string{"restore", system, "--volume", system + "_data", "--to", to}},
		{"check", []string{"check"}},
		{"verify", []string{"verify"}},
		{"forget", []string{"forget", system, "--keep-last", "1", "--yes"}},
		{"gc", []string{"gc", "--grace", "1s", "--max-unused", "1%", "--yes"}},
	} {
		unix.Sync()
		var o outcome
		if _, err := l.run(ctx, &o, c.args...); err != nil {
			return err
		}
		r.note(s, system, c.name, 0, o)
	}
	if err := sameAmount(to, dir); err != nil {
		return err
	}
	return os.RemoveAll(to)
}

// volumeOf starts a container with a volume of its own and tells where that lies.
func (s *stage) volumeOf(ctx context.Context, name string) (string, error) {
	if err := s.idle(ctx, name, images.Base, "--volume", name+"_data:"+volumeDir); err != nil {
		return "", err
	}
	out, err := s.site.Docker(ctx, "volume", "inspect", "--format", "{{.Mountpoint}}", name+"_data")
	return strings.TrimSpace(string(out)), err
}

func manyName(i int) string {
	return fmt.Sprintf("d%03d/e%05d/entry-%07d.txt", i/largePerDir/100, i/largePerDir, i)
}

// writeMany writes n files of 30 to 150 bytes as a tar stream.
func writeMany(w io.Writer, n int, seed uint64) (t corpus.Totals, err error) {
	r := rand.New(rand.NewPCG(seed, 23))
	out := tar.NewWriter(w)
	for i := range n {
		body := fmt.Appendf(nil, "file %d of %d %x", i, n, r.Uint64())
		for size := 30 + r.IntN(121); len(body) < size; {
			body = fmt.Appendf(body, " %x", r.Uint32())
		}
		head := &tar.Header{Typeflag: tar.TypeReg, Name: manyName(i), Size: int64(len(body)), Mode: 0o640, Uid: 33, Gid: 33, ModTime: time.Unix(1_700_000_000+int64(i), 0)}
		if err = out.WriteHeader(head); err == nil {
			_, err = out.Write(body)
		}
		if err != nil {
			return t, fmt.Errorf("write data: %w", err)
		}
		t.Add(corpus.Totals{Files: 1, Bytes: int64(len(body))})
	}
	return t, out.Close()
}

// scribble writes random blocks of a file without end, as a busy database does: of size blocks of 16 KiB
// at the numbers of a generator, into the ranges that have data.
const scribble = `n=$$
while :; do
  n=$(( (n * 1103515245 + 12345) % 2147483648 ))
  dd if=/dev/urandom of="$1" bs=16384 count=1 conv=notrunc status=none seek=$(( (n / 1024 % $2) * $3 + n / 65536 % 1024 )) || exit 1
done`

// beingWritten is snapshots of a system with a sparse file of 10 GiB into which a process of its own writes.
func (s *stage) beingWritten(ctx context.Context, r *largeResults, l *lifeboat, scale float64) (err error) {
	const system = "busy"
	dir, err := s.volumeOf(ctx, system)
	if err != nil {
		return err
	}
	r.Dirty = int64(dirtyBytes*scale) / (dirtyRanges * corpus.PageSize) * dirtyRanges * corpus.PageSize
	if r.Data, err = sparseFile(filepath.Join(dir, dirtyName), r.Dirty, dirtyRange, s.shape.Seed); err != nil {
		return err
	}
	s.log.Info("made a sparse file", "bytes", r.Dirty, "data", r.Data)
	var unmeasured outcome
	if _, err := l.run(ctx, &unmeasured, "protect", system, "--container", system); err != nil {
		return err
	}
	if err := r.take(ctx, l, system, "first snapshot"); err != nil {
		return err
	}
	stride := r.Dirty / dirtyRanges / corpus.PageSize
	if _, err := s.site.Docker(ctx, "exec", "--detach", system, "/bin/sh", "-c", scribble, "sh",
		volumeDir+"/"+dirtyName, fmt.Sprint(dirtyRanges), fmt.Sprint(stride)); err != nil {
		return err
	}
	for i := range 3 {
		if err := r.take(ctx, l, system, fmt.Sprintf("snapshot %d while it is written", i+2)); err != nil {
			return err
		}
	}
	to := filepath.Join(s.dir, "busy-restored")
	var o outcome
	if _, err := l.run(ctx, &o, "restore", system, "--volume", system+"_data", "--to", to); err != nil {
		return err
	}
	r.note(s, system, "restore", 0, o)
	var st unix.Stat_t
	found, err := filepath.Glob(filepath.Join(to, dirtyName))
	if err != nil || len(found) != 1 {
		return errors.Join(err, fmt.Errorf("restored are %v, not one %s", found, dirtyName))
	}
	if err := unix.Stat(found[0], &st); err != nil {
		return err
	}
	if st.Size != r.Dirty || st.Blocks*512 > r.Data+r.Data/8 {
		return fmt.Errorf("restored are %d bytes that take %d, want %d with %d of data", st.Size, st.Blocks*512, r.Dirty, r.Data)
	}
	_, err = s.site.Docker(ctx, "rm", "--force", "--volumes", system)
	return errors.Join(err, os.RemoveAll(to))
}

// sparseFile makes a file of ranges with noise, each of so many bytes, between holes.
func sparseFile(name string, size, length int64, seed uint64) (data int64, err error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o660)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Truncate(size); err != nil {
		return 0, err
	}
	var key [32]byte
	key[0] = byte(seed)
	noise := rand.NewChaCha8(key)
	n := min(length, size/dirtyRanges)
	for i := range int64(dirtyRanges) {
		w := bufio.NewWriterSize(io.NewOffsetWriter(f, i*(size/dirtyRanges)), 1<<20)
		if _, err := io.CopyN(w, noise, n); err != nil {
			return 0, err
		}
		if err := w.Flush(); err != nil {
			return 0, err
		}
	}
	return n * dirtyRanges, f.Sync()
}

// files are the table, the raw figures and a picture.
func (r *largeResults) files() (map[string][]byte, error) {
	raw, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return nil, fmt.Errorf("write figures: %w", err)
	}
	c := chart.Bars{Title: "Peak resident memory with large systems", Unit: "MB"}
	for _, p := range r.Points {
		if !slices.Contains(c.Groups, p.Command) {
			c.Groups = append(c.Groups, p.Command)
		}
	}
	for _, system := range []string{"files", "busy"} {
		s := chart.BarSeries{Name: system}
		for _, command := range c.Groups {
			var list []float64
			for _, p := range r.Points {
				if p.System == system && p.Command == command {
					list = append(list, float64(p.Peak)/1e6)
				}
			}
			s.Values = append(s.Values, spread(list))
		}
		c.Series = append(c.Series, s)
	}
	return map[string][]byte{"large.md": r.markdown(), "large.json": append(raw, '\n'), "large.svg": c.SVG()}, nil
}

func (r *largeResults) markdown() []byte {
	b := &bytes.Buffer{}
	b.WriteString("# Large systems\n\n")
	r.Machine.markdown(b)
	fmt.Fprintf(b, "files: %d files, %.1f MB. busy: one file of %.1f GB, of which %.0f MB are data, written at random places all the time.\n",
		r.Files.Files, float64(r.Files.Bytes)/1e6, float64(r.Dirty)/1e9, float64(r.Data)/1e6)
	b.WriteString("\n| system | command | seconds | peak, MB | sent, MB | frozen, ms |\n|---|---|---|---|---|---|\n")
	for _, p := range r.Points {
		fmt.Fprintf(b, "| %s | %s | %.1f | %.0f | %.2f | %.1f |\n", p.System, p.Command, p.Seconds, float64(p.Peak)/1e6, float64(p.Sent)/1e6, p.Frozen)
	}
	return b.Bytes()
}
