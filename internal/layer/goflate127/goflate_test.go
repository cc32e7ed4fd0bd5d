package goflate127_test

import (
	"bytes"
	"compress/flate"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"lifeboat/internal/layer/goflate127"
)

// sample is 3 MiB that has something for every part of the compressor: text
// with repeats near and far, noise, zeros, short periods.
func sample() []byte {
	rng := rand.New(rand.NewPCG(1, 2))
	var b bytes.Buffer
	for b.Len() < 3<<20 {
		switch rng.IntN(5) {
		case 0:
			for range 200 {
				fmt.Fprintf(&b, "/usr/share/doc/package-%d/changelog.gz\n", rng.IntN(3000))
			}
		case 1:
			noise := make([]byte, rng.IntN(40000))
			for i := range noise {
				noise[i] = byte(rng.Uint32())
			}
			b.Write(noise)
		case 2:
			b.Write(make([]byte, rng.IntN(70000)))
		case 3:
			b.Write(bytes.Repeat([]byte("abcabcabd"), rng.IntN(2000)))
		default:
			if n := b.Len(); n > 40000 {
				from := rng.IntN(n - 40000)
				b.Write(bytes.Clone(b.Bytes()[from : from+rng.IntN(40000)]))
			}
		}
	}
	return b.Bytes()
}

// golden digests were taken from compress/flate of Go 1.27. They must never
// change: stored recipes depend on them.
var golden = map[int]string{
	-2: "919eb3a127b353e4f7975c0ecf713b128e63803daa8a7acb8cd4e36e9d43b525", 0: "df80bf111ba0fadc2c80460c397571244d1d12e507258cf607a8046f61ce71df", 1: "6610d032df2fe50c64dead3c208a017a361e1c11c3527d61223141cc5e7337f4", 2: "9e3c9a21fdf495ddb95d9e1d930e3c24803c4d5b783d966e6dfc0113019580a1", 3: "7b3e403adaaa23d6c1f9e97a54c18bd262372087a68b13e5a12f1ed290844ab8", 4: "123c5bc06c63177073633a3e3530ee51a62cdae635a9a850476737e6d7f82ce6",
	5: "006f044856823b74148fc56bf83c7143839dfc25ec6055a16173da30ed34a3f1", 6: "de6ceeb56d1b23ffe7ea3468cc95b63b78f021bb2be780f41d17618349ac70b8", 7: "be1ff24d8745b9e02174eaf3383bf6ddbf977e65d2cf1158733320254dcd980c", 8: "086386451f291e7d125b7bd8237c06251b3ac18e17297f77ce3aaeb2dbdb7a3c", 9: "ee7a6640abc27233b0926ad12353aa8d43f0d48ff01e635202202846d85921cd",
}

func TestOutputIsPinned(t *testing.T) {
	t.Parallel()
	data := sample()
	for level, want := range golden {
		t.Run(fmt.Sprint("level ", level), func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			w, err := goflate127.NewWriter(&out, level)
			if err != nil {
				t.Fatal(err)
			}
			// Writes of odd sizes: the output must not depend on them.
			rng := rand.New(rand.NewPCG(3, uint64(level)+10))
			for rest := data; len(rest) > 0; {
				n := min(len(rest), 1+rng.IntN(100000))
				if _, err := w.Write(rest[:n]); err != nil {
					t.Fatal(err)
				}
				rest = rest[n:]
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			sum := sha256.Sum256(out.Bytes())
			if got := hex.EncodeToString(sum[:]); got != want {
				t.Errorf("digest %s, want %s", got, want)
			}
			back, err := io.ReadAll(flate.NewReader(&out))
			if err != nil || !bytes.Equal(back, data) {
				t.Errorf("decompressed to %d bytes, %v; want the %d of the sample", len(back), err, len(data))
			}
		})
	}
}
