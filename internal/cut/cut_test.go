package cut_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"lifeboat/internal/cut"
)

func random(seed uint64, n int) []byte {
	var s [32]byte
	binary.LittleEndian.PutUint64(s[:], seed)
	b := make([]byte, n)
	_, _ = rand.NewChaCha8(s).Read(b)
	return b
}

// split cuts data with all of it in sight.
func split(c *cut.Cutter, class cut.Class, data []byte) []int {
	var ends []int
	for at := 0; at < len(data); {
		at += c.Next(class, data[at:], true)
		ends = append(ends, at)
	}
	return ends
}

func TestSizes(t *testing.T) {
	t.Parallel()
	c := cut.New([32]byte{1})
	data := random(1, 64<<20)
	ends := split(c, cut.Content, data)
	at := 0
	for i, end := range ends {
		if n := end - at; n > cut.MaxPiece || n < cut.MinPiece && i < len(ends)-1 {
			t.Errorf("piece %d has %d bytes", i, n)
		}
		at = end
	}
	if avg := len(data) / len(ends); avg < 3*cut.AvgPiece/4 || avg > 3*cut.AvgPiece/2 {
		t.Errorf("average piece: %d bytes, want about %d", avg, cut.AvgPiece)
	}
	if got := split(c, cut.Fixed, data[:100<<10]); !cmp.Equal(got, []int{32 << 10, 64 << 10, 96 << 10, 100 << 10}) {
		t.Errorf("fixed: %v", got)
	}
	if got := split(c, cut.Whole, data[:200<<10]); !cmp.Equal(got, []int{200 << 10}) {
		t.Errorf("whole: %v", got)
	}
	// Data without any variation never meets the condition or always does.
	if got := split(c, cut.Content, make([]byte, 9<<20)); got[len(got)-1] != 9<<20 {
		t.Errorf("zeros: %v", got)
	}
}

// TestKeyed: the boundaries of one repository tell nothing about another's.
func TestKeyed(t *testing.T) {
	t.Parallel()
	data := random(2, 32<<20)
	a := split(cut.New([32]byte{1}), cut.Content, data)
	b := split(cut.New([32]byte{2}), cut.Content, data)
	seen := map[int]bool{}
	for _, end := range a {
		seen[end] = true
	}
	same := 0
	for _, end := range b[:len(b)-1] {
		if seen[end] {
			same++
		}
	}
	if same > 0 {
		t.Errorf("%d boundaries of %d are the same under two keys", same, len(b))
	}
	if !cmp.Equal(a, split(cut.New([32]byte{1}), cut.Content, data)) {
		t.Error("the same key gives other boundaries")
	}
}

// TestShownDoesNotMatter: boundaries depend on the content only, whatever part
// of it Next is shown and however the reader delivers it.
func TestShownDoesNotMatter(t *testing.T) {
	t.Parallel()
	c := cut.New([32]byte{3})
	pool := random(3, 7<<20)
	rapid.Check(t, func(t *rapid.T) {
		class := rapid.SampledFrom([]cut.Class{cut.Whole, cut.Content, cut.Fixed}).Draw(t, "class")
		data := pool[rapid.IntRange(0, len(pool)).Draw(t, "from"):]
		limit := map[cut.Class]int{cut.Whole: 6 << 20, cut.Content: 6 << 20, cut.Fixed: 200 << 10}[class]
		data = data[:min(len(data), rapid.IntRange(0, limit).Draw(t, "size"))]
		want := split(c, class, data)
		at := 0
		for i, end := range want {
			shown := rapid.IntRange(at, len(data)).Draw(t, "shown")
			n := c.Next(class, data[at:shown], false)
			if n != 0 && n != end-at {
				t.Fatalf("piece %d: shown %d bytes: %d, want %d or 0", i, shown-at, n, end-at)
			}
			at = end
		}
		readers := map[string]func(io.Reader) io.Reader{
			"plain": func(r io.Reader) io.Reader { return r },
			"half":  iotest.HalfReader,
			"eof":   iotest.DataErrReader,
		}
		name := rapid.SampledFrom([]string{"plain", "half", "eof"}).Draw(t, "reader")
		var got []int
		var back []byte
		buf := make([]byte, rapid.SampledFrom([]int{0, cut.MaxPiece, 5 << 20}).Draw(t, "buffer"))
		err := c.PiecesBuffer(class, readers[name](bytes.NewReader(data)), buf, func(p []byte) error {
			back = append(back, p...)
			got = append(got, len(back))
			return nil
		})
		if err != nil || !cmp.Equal(got, want) || !bytes.Equal(back, data) {
			t.Fatalf("streamed: %v, %v, want %v", got, err, want)
		}
	})
}

// TestInsert: bytes inserted in the middle make few new pieces.
func TestInsert(t *testing.T) {
	t.Parallel()
	c := cut.New([32]byte{4})
	data := random(4, 16<<20)
	pieces := func(data []byte) map[[16]byte]bool {
		set := map[[16]byte]bool{}
		for _, end := range split(c, cut.Content, data) {
			// Random bytes: the last 16 of a piece name it.
			set[[16]byte(data[end-16:end])] = true
		}
		return set
	}
	have := pieces(data)
	rng := rand.New(rand.NewPCG(4, 4))
	for range 10 {
		at := rng.IntN(len(data))
		ins := random(rng.Uint64(), 1+rng.IntN(100<<10))
		edited := append(append(append([]byte{}, data[:at]...), ins...), data[at:]...)
		fresh := 0
		for p := range pieces(edited) {
			if !have[p] {
				fresh++
			}
		}
		// One where the bytes went in, then a few until a boundary of old and
		// new coincides.
		if fresh > 6 {
			t.Errorf("insert of %d bytes at %d: %d new pieces of %d", len(ins), at, fresh, len(have))
		}
	}
}

func TestErrorsPassThrough(t *testing.T) {
	t.Parallel()
	c := cut.New([32]byte{})
	boom := errors.New("boom")
	if err := c.Pieces(cut.Content, iotest.ErrReader(boom), func([]byte) error { return nil }); !errors.Is(err, boom) {
		t.Errorf("reader's error: %v", err)
	}
	if err := c.Pieces(cut.Fixed, bytes.NewReader(make([]byte, 1)), func([]byte) error { return boom }); !errors.Is(err, boom) {
		t.Errorf("callback's error: %v", err)
	}
}

func TestClassOf(t *testing.T) {
	t.Parallel()
	sqlite := append([]byte("SQLite format 3\x00"), make([]byte, 4080)...)
	inno := make([]byte, 4096)
	inno[25], inno[37], inno[41] = 8, 7, 7
	mbr := make([]byte, 4096)
	mbr[446], mbr[450], mbr[510], mbr[511] = 0x80, 0x83, 0x55, 0xaa
	ext4 := make([]byte, 4096)
	ext4[1080], ext4[1081] = 0x53, 0xef
	const big = 64 << 20
	for _, tt := range []struct {
		path string
		size int64
		head []byte
		want cut.Class
	}{
		{"small.ibd", 1000, nil, cut.Whole},
		{"lib/mysql/ibdata1", big, nil, cut.Fixed},
		{"wp/t1.ibd", big, nil, cut.Fixed},
		{"#innodb_redo/#ib_redo7", big, nil, cut.Fixed},
		{"aria_log.00000001", big, nil, cut.Fixed},
		{"binlog.000001", big, nil, cut.Content},
		{"video.mp4", big, nil, cut.Content},
		{"", big, nil, cut.Content},
		{"base/16384/16397", big, nil, cut.Fixed},
		{"pgdata/base/16384/16397.3", big, nil, cut.Fixed},
		{"base/16384/16397_fsm", big, nil, cut.Fixed},
		{"base/16384/16397x", big, nil, cut.Content},
		{"database/16384/16397", big, nil, cut.Content},
		{"global/1260", big, nil, cut.Fixed},
		{"pg_tblspc/16400/PG_15_202209061/5/16401", big, nil, cut.Fixed},
		{"pg_wal/000000010000000000000001", big, nil, cut.Fixed},
		{"pg_wal/00000001.history", big, nil, cut.Content},
		{"xpg_wal/000000010000000000000001", big, nil, cut.Content},
		{"app.data", big, sqlite, cut.Fixed},
		{"app.data", big, sqlite[:10], cut.Content},
		{"unknown", big, inno, cut.Fixed},
		{"disk", big, mbr, cut.Fixed},
		{"disk", big + 1, mbr, cut.Content},
		{"fs", big, ext4, cut.Fixed},
		{"zeros", big, make([]byte, 4096), cut.Content},
	} {
		if got := cut.ClassOf([]byte(tt.path), tt.size, tt.head); got != tt.want {
			t.Errorf("%s, %d bytes: %v, want %v", tt.path, tt.size, got, tt.want)
		}
	}
}

func FuzzNext(f *testing.F) {
	f.Add([]byte("seed"), uint32(300<<10), uint8(2))
	f.Add([]byte{}, uint32(5<<20), uint8(1))
	c := cut.New([32]byte{5})
	f.Fuzz(func(t *testing.T, pattern []byte, size uint32, class uint8) {
		data := make([]byte, size%(9<<20))
		for at := 0; at < len(data) && len(pattern) > 0; {
			at += copy(data[at:], pattern)
		}
		at := 0
		for at < len(data) {
			n := c.Next(cut.Class(class), data[at:], true)
			if n <= 0 || n > cut.MaxPiece || n > len(data)-at {
				t.Fatalf("piece of %d bytes at %d of %d", n, at, len(data))
			}
			if n != c.Next(cut.Class(class), data[at:at+n], true) {
				t.Fatalf("piece at %d depends on what follows", at)
			}
			at += n
		}
	})
}

func FuzzClassOf(f *testing.F) {
	f.Add([]byte("base/1/2"), int64(1<<20), []byte("SQLite format 3\x00"))
	f.Fuzz(func(t *testing.T, path []byte, size int64, head []byte) {
		if c := cut.ClassOf(path, size, head); c < cut.Whole || c > cut.Fixed {
			t.Fatalf("class %v", c)
		}
	})
}

func BenchmarkNext(b *testing.B) {
	data := random(9, 64<<20)
	c := cut.New([32]byte{6})
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		for at := 0; at < len(data); {
			at += c.Next(cut.Content, data[at:], true)
		}
	}
}

// endless gives nothing and no error.
type endless struct{}

func (endless) Read([]byte) (int, error) { return 0, nil }

// A reader that is cut short never yields a file that ends there (invariant 3).
func TestCutShort(t *testing.T) {
	t.Parallel()
	c := cut.New([32]byte{1})
	data := random(3, cut.MaxPiece+1)
	buf := make([]byte, 2*cut.MaxPiece)
	for _, class := range []cut.Class{cut.Whole, cut.Content, cut.Fixed} {
		for _, size := range []int{0, 1, cut.FixedPiece, cut.MaxPiece, cut.MaxPiece + 1} {
			for _, failure := range []error{io.ErrUnexpectedEOF, fmt.Errorf("wrapped: %w", io.EOF)} {
				for name, r := range map[string]io.Reader{
					"after":  io.MultiReader(bytes.NewReader(data[:size]), iotest.ErrReader(failure)),
					"along":  iotest.DataErrReader(io.MultiReader(bytes.NewReader(data[:size]), iotest.ErrReader(failure))),
					"slowly": iotest.HalfReader(io.MultiReader(bytes.NewReader(data[:size]), iotest.ErrReader(failure))),
				} {
					if err := c.PiecesBuffer(class, r, buf, func([]byte) error { return nil }); !errors.Is(err, failure) {
						t.Fatalf("%s, %d bytes, then %v %s: %v", class, size, failure, name, err)
					}
				}
			}
			for name, r := range map[string]io.Reader{
				"after": bytes.NewReader(data[:size]), "along": iotest.DataErrReader(bytes.NewReader(data[:size])),
			} {
				var got []byte
				if err := c.PiecesBuffer(class, r, buf, func(p []byte) error { got = append(got, p...); return nil }); err != nil || !bytes.Equal(got, data[:size]) {
					t.Fatalf("%s, %d bytes, end %s: %d bytes, %v", class, size, name, len(got), err)
				}
			}
		}
	}
	if err := c.Pieces(cut.Content, endless{}, func([]byte) error { return nil }); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("a reader that gives nothing: %v", err)
	}
}
