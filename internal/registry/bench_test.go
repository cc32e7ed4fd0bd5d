package registry_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"lifeboat/internal/registry/registrytest"
	"lifeboat/internal/store/ocistore"
	"lifeboat/internal/store/storetest"
)

// BenchmarkPutBlob stores blobs of a small and of a pack's size, four at a time,
// durably, over TLS.
func BenchmarkPutBlob(b *testing.B) {
	for _, size := range []int{1 << 10, 16 << 20} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			r := registrytest.Start(b)
			s, err := ocistore.Open(b.Context(), r.URL("dr"), r.Options())
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(size))
			b.SetParallelism(2)
			b.RunParallel(func(pb *testing.PB) {
				blob := storetest.Random(size)
				for n := byte(0); pb.Next(); n++ {
					blob[0]++
					if blob[0] == 0 {
						blob[1]++
					}
					sum := sha256.Sum256(blob)
					d := digest.NewDigestFromEncoded(digest.SHA256, hex.EncodeToString(sum[:]))
					if _, err := s.PutBlob(b.Context(), d, int64(size), storetest.Bytes(blob)); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}

// BenchmarkPutManifest writes the next number of a series, durably.
func BenchmarkPutManifest(b *testing.B) {
	r := registrytest.Start(b)
	s, err := ocistore.Open(b.Context(), r.URL("dr"), r.Options())
	if err != nil {
		b.Fatal(err)
	}
	storetest.ManifestOf(b, s, "")
	for n := 1; b.Loop(); n++ {
		if _, err := s.PutManifest(b.Context(), fmt.Sprintf("s.shop.%d", n), ocispec.MediaTypeImageManifest, manifest(fmt.Sprint(n))); err != nil {
			b.Fatal(err)
		}
	}
}
