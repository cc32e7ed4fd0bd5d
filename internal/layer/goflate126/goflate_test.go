package goflate126_test

import (
	"bytes"
	"compress/flate"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"lifeboat/internal/layer/goflate126"
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

// golden digests were taken from compress/flate of Go 1.26. They must never
// change: stored recipes depend on them.
var golden = map[int]string{
	-2: "ece3624f68fcc55281c7c27711e05c7a6b97ce375b7a2e5de6c5585dae6738d5", 0: "343eb285a0e5be2cc0182e4022ee7c6c19ba87d6af259b87e1c4b61ea69fcb27", 1: "4e0795abf6a358f75186a1a2e3376ff983117a379765dfa2d532805dc34e9749", 2: "d8e341bea519fd48d534930f06b5acf54af498b98c92c27403f022ce7d6c3f5f", 3: "43200a52fae71306f79c5ae2761328f0bee9f35e879d62f84bb5296bff7b3141", 4: "8e0b22ce6d1b1bd2151d25b6e94df105a8aec7587301ddc37e0b8a72137cd43a",
	5: "921ddaef7b4a053b376d2567df40964464912e78725a6f928a4e6dddd3a96741", 6: "7eb7141ef17fd07a3473963fc907da096a5f2950d782ecd8d905a0d880a23d08", 7: "de29280af32508f413121dc7e416dd3a8f8ef15f00d99c5b816a17b66b88f211", 8: "df56d165e00d9e99efb6493715093a41234e51781412f96ca56de417e515b6d0", 9: "c84e11ae1989b5ee8fda6fe9f7ca0aea64b3325b3206584c89b7d54f36e9234d",
}

func TestOutputIsPinned(t *testing.T) {
	t.Parallel()
	data := sample()
	for level, want := range golden {
		t.Run(fmt.Sprint("level ", level), func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			w, err := goflate126.NewWriter(&out, level)
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
