// Package corpus makes the data that the benchmarks copy: the files of a learning platform, which are
// many small texts, some pictures, courses with handouts that do not shrink, and the files of a database.
//
// Main types: [Shape], how much of each, [Text], what texts are made of, and [Totals], what was made. Trees are written as tar streams,
// so that they can be unpacked inside a container as an application would write them. The same seed gives
// the same bytes. The package writes no file itself, and its database is one in form only: pages with
// headers, rows and free space, which no server would open.
package corpus

import (
	"archive/tar"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"time"
)

// PageSize is the size of a database page in bytes, InnoDB's.
const PageSize = 16 << 10

// Table is the name of the big database file within the tree of [Shape.WriteDatabase].
const Table = "learning/log.ibd"

// Shape says how much of each kind of data a platform has.
type Shape struct {
	Texts     int // small files of program and page text, which shrink
	TextSize  int // mean, bytes
	Pictures  int // small files that do not shrink
	PicSize   int // mean, bytes
	Courses   int
	Lectures  int // of one course, each with a handout and two pages
	Handout   int // bytes of a handout, which does not shrink
	TablePage int // pages of the big database file
	Seed      uint64
	Text      *Text // what texts and rows are made of
}

// Learning is a platform with 20 courses: some 40,000 files of 1.3 GB, more than half of which does not
// shrink, and 240 MB of it database. Scale makes all of it but a single course smaller or bigger.
func Learning(scale float64, seed uint64, text *Text) Shape {
	n := func(full int) int { return max(1, int(float64(full)*scale)) }
	return Shape{
		Texts: n(35000), TextSize: 8600, Pictures: n(3900), PicSize: 22000,
		Courses: n(20), Lectures: 15, Handout: 2_200_000, TablePage: n(14648), Seed: seed, Text: text,
	}
}

// Totals are what was written.
type Totals struct {
	Files          int
	Bytes          int64 // of files' content
	Incompressible int64 // the part of Bytes that is random
}

// Add sums up.
func (t *Totals) Add(u Totals) {
	t.Files += u.Files
	t.Bytes += u.Bytes
	t.Incompressible += u.Incompressible
}

// WriteSite writes the platform's own files and its courses as a tar stream.
func (s Shape) WriteSite(w io.Writer) (Totals, error) {
	g := newGenerator(w, s.Text, s.Seed)
	for i := range s.Texts {
		g.file(fmt.Sprintf("code/m%03d/p%02d/%s_%d.php", i/900, i/45%20, g.name(), i), g.around(s.TextSize), false)
	}
	for i := range s.Pictures {
		g.file(fmt.Sprintf("pictures/%02x/%s_%d.png", i%64, g.name(), i), g.around(s.PicSize), true)
	}
	for i := range s.Courses {
		s.course(g, i)
	}
	return g.close()
}

// WriteCourse writes one more course as a tar stream: some 34 MB. Every number is another course.
func (s Shape) WriteCourse(w io.Writer, number int) (Totals, error) {
	g := newGenerator(w, s.Text, s.Seed^uint64(number)<<20^0x9e3779b97f4a7c15)
	s.course(g, number)
	return g.close()
}

// Course is the directory of a course within the tree.
func Course(number int) string { return fmt.Sprintf("courses/c%04d", number) }

func (s Shape) course(g *generator, number int) {
	for l := range s.Lectures {
		dir := fmt.Sprintf("%s/l%02d", Course(number), l)
		g.file(dir+"/handout.pdf", s.Handout, true)
		g.file(dir+"/lecture.html", g.around(s.TextSize), false)
		g.file(dir+"/questions.xml", g.around(s.TextSize), false)
	}
}

// WriteDatabase writes the database's files as a tar stream: one big table and a few small ones.
func (s Shape) WriteDatabase(w io.Writer) (Totals, error) {
	g := newGenerator(w, s.Text, s.Seed+1)
	g.table(Table, s.TablePage)
	for _, name := range []string{"user", "course", "grade", "session"} {
		g.table("learning/"+name+".ibd", 12)
	}
	return g.close()
}

// ChangePages writes n random pages of a database file anew, as a busy server does. The file keeps its size.
func (s Shape) ChangePages(f io.WriterAt, size int64, n int, seed uint64) error {
	r := rand.New(rand.NewPCG(seed, 17))
	g := &generator{rand: r, text: s.Text}
	pages := r.Perm(int(size / PageSize))
	if n > len(pages) {
		return fmt.Errorf("change %d pages of a file that has %d", n, len(pages))
	}
	for _, p := range pages[:n] {
		if _, err := f.WriteAt(g.page(p), int64(p)*PageSize); err != nil {
			return fmt.Errorf("change page %d: %w", p, err)
		}
	}
	return nil
}

// generator writes files to a tar stream; the first error stays and ends the writing.
type generator struct {
	tar    *tar.Writer
	rand   *rand.Rand
	random *rand.ChaCha8
	text   *Text
	buf    []byte
	totals Totals
	err    error
}

func newGenerator(w io.Writer, text *Text, seed uint64) *generator {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	return &generator{tar: tar.NewWriter(w), rand: rand.New(rand.NewPCG(seed, 5)), random: rand.NewChaCha8(key), text: text}
}

// name is a short name.
func (g *generator) name() string {
	b := make([]byte, 3+g.rand.IntN(9))
	for i := range b {
		b[i] = "etaoinshrdlucmfwypvbgkqjxz"[min(g.rand.IntN(26), g.rand.IntN(26))]
	}
	return string(b)
}

// around is a size about a mean; most are smaller and some much bigger.
func (g *generator) around(mean int) int {
	return max(80, int(float64(mean)*min(g.rand.ExpFloat64(), 8)))
}

func (g *generator) file(name string, size int, incompressible bool) {
	if cap(g.buf) < size {
		g.buf = make([]byte, size)
	}
	g.buf = g.buf[:size]
	if incompressible {
		_, _ = g.random.Read(g.buf) // never fails
		g.totals.Incompressible += int64(size)
	} else {
		g.text.fill(g.rand, g.buf)
	}
	g.put(name, g.buf)
}

func (g *generator) put(name string, data []byte) {
	if g.err != nil {
		return
	}
	g.totals.Files++
	g.totals.Bytes += int64(len(data))
	head := &tar.Header{
		Typeflag: tar.TypeReg, Name: name, Size: int64(len(data)), Mode: 0o640, Uid: 33, Gid: 33, Format: tar.FormatPAX,
		ModTime: time.Unix(1_700_000_000+int64(g.totals.Files)*61, 0),
	}
	if g.err = g.tar.WriteHeader(head); g.err == nil {
		_, g.err = g.tar.Write(data)
	}
}

// table writes a file of pages one by one: it may be bigger than what should be held in memory.
func (g *generator) table(name string, pages int) {
	if g.err != nil {
		return
	}
	g.totals.Files++
	g.totals.Bytes += int64(pages) * PageSize
	g.err = g.tar.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: name, Size: int64(pages) * PageSize, Mode: 0o660, Uid: 101, Gid: 101, Format: tar.FormatPAX,
		ModTime: time.Unix(1_750_000_000, 0),
	})
	for p := 0; p < pages && g.err == nil; p++ {
		_, g.err = g.tar.Write(g.page(p))
	}
}

// page is a page as InnoDB has them: a header with checksum, number and sequence, rows up to some three
// quarters, free space, a trailer.
func (g *generator) page(number int) []byte {
	b := make([]byte, PageSize)
	binary.BigEndian.PutUint32(b, g.rand.Uint32())
	binary.BigEndian.PutUint32(b[4:], uint32(number))
	binary.BigEndian.PutUint64(b[16:], g.rand.Uint64())
	end := PageSize/2 + g.rand.IntN(PageSize/2-300)
	for at, row := 120, uint64(number)*100; at < end; row++ {
		binary.BigEndian.PutUint64(b[at:], row)
		binary.BigEndian.PutUint64(b[at+8:], g.rand.Uint64())
		n := 30 + g.rand.IntN(150)
		g.text.fill(g.rand, b[at+16:at+16+n])
		at += 16 + n
	}
	copy(b[PageSize-8:], b[:4])
	return b
}

func (g *generator) close() (Totals, error) {
	if g.err == nil {
		g.err = g.tar.Close()
	}
	if g.err != nil {
		return g.totals, fmt.Errorf("write data: %w", g.err)
	}
	return g.totals, nil
}
