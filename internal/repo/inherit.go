package repo

import (
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/opencontainers/go-digest"

	"lifeboat/internal/repo/idxcache"
)

// inheritRead marks groups of other hosts' manifests as read that lie in packs
// which this host knows from manifests of its own, or has read there: compaction
// by another host names the same packs anew. Only the local index caches are
// asked. What goes wrong costs reading again.
func (r *Repo) inheritRead(targets []*index) {
	type place struct {
		ix *index
		p  idxcache.Pack
	}
	wanted := map[[32]byte][]place{}
	known := map[string]bool{}
	for _, ix := range targets {
		known[ix.need.Digest.Encoded()] = true
		for i := range uint32(ix.Packs()) {
			p, err := ix.Pack(i)
			if err != nil {
				return
			}
			wanted[p.Digest] = append(wanted[p.Digest], place{ix, p})
		}
	}
	files, err := os.ReadDir(r.idx.dir())
	if err != nil {
		return // nothing cached
	}
	for _, f := range files {
		hex, ok := strings.CutSuffix(f.Name(), ".idx")
		if d := digest.NewDigestFromEncoded(digest.SHA256, hex); !ok || known[hex] || d.Validate() != nil {
			continue
		}
		src := r.openCached(hex)
		if src == nil {
			continue
		}
		for i := range uint32(src.Packs()) {
			p, err := src.Pack(i)
			if err != nil {
				break
			}
			for _, to := range wanted[p.Digest] {
				same, err := sameGroups(packUse{src, p}, packUse(to))
				if err != nil || !same {
					continue
				}
				for g := range p.Groups {
					if src.wasRead(p.FirstGroup + g) {
						to.ix.markRead(to.p.FirstGroup + g)
					}
				}
			}
		}
		_ = src.Close() // read only
	}
	for _, ix := range targets {
		if err := r.saveRead(ix); err != nil {
			r.log.Warn("what was read is not remembered", "error", err)
		}
	}
}

// openCached opens a cache file by the digest of its manifest; nil where it is of
// no use.
func (r *Repo) openCached(hex string) *index {
	d := digest.NewDigestFromEncoded(digest.SHA256, hex)
	raw, err := rawDigest(d)
	if err != nil {
		return nil
	}
	x, err := idxcache.Open(filepath.Join(r.idx.dir(), hex+".idx"), r.idx.key(), r.ID(), raw, r.idx.resident)
	if err != nil {
		return nil
	}
	out := &index{Index: x, need: need{Digest: d}, own: x.Host() == r.HostID()}
	if out.own {
		return out
	}
	bits, err := r.state.readBits(d, x.Groups())
	if err != nil {
		_ = x.Close() // read only
		return nil
	}
	out.read = make([]atomic.Uint64, len(bits))
	for i, b := range bits {
		out.read[i].Store(b)
	}
	return out
}
