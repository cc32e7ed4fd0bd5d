package repo

import (
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
)

// harm is what of the stored data cannot be used, as far as it was looked at.
// Safe for concurrent use.
type harm struct {
	mu sync.Mutex
	// manifests that cannot be used as a whole, with the blob at fault.
	manifests map[digest.Digest]digest.Digest
	groups    map[digest.Digest]map[uint32]bool
	packs     map[digest.Digest]bool                       // not whole, maybe in the padding only
	byPack    map[digest.Digest]map[digest.Digest][]uint32 // by pack and manifest: groups
}

func newHarm() *harm {
	return &harm{
		manifests: map[digest.Digest]digest.Digest{}, groups: map[digest.Digest]map[uint32]bool{},
		packs: map[digest.Digest]bool{}, byPack: map[digest.Digest]map[digest.Digest][]uint32{},
	}
}

// manifest notes that a pack manifest cannot be used because of a blob.
func (h *harm) manifest(n need, blob digest.Digest) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.manifests[n.Digest] = blob
}

// pack notes that a pack is not what a manifest promises: groups of it, counted
// through all packs of the manifest, cannot be used.
func (h *harm) pack(n need, d digest.Digest, groups []uint32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.packs[d] = true
	if h.byPack[d] == nil {
		h.byPack[d] = map[digest.Digest][]uint32{}
	}
	h.byPack[d][n.Digest] = groups
	if len(groups) > 0 && h.groups[n.Digest] == nil {
		h.groups[n.Digest] = map[uint32]bool{}
	}
	for _, g := range groups {
		h.groups[n.Digest][g] = true
	}
}

// addGroup notes one group more that cannot be used, of a pack that is known not
// to be whole.
func (h *harm) addGroup(d digest.Digest, group uint32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.groups[d] == nil {
		h.groups[d] = map[uint32]bool{}
	}
	h.groups[d][group] = true
}

// unusable reports whether a pack manifest cannot be used, and why.
func (h *harm) unusable(d digest.Digest) (blob digest.Digest, bad bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	blob, bad = h.manifests[d]
	return blob, bad
}

// group reports whether a group of a manifest cannot be used.
func (h *harm) group(d digest.Digest, group uint32) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.groups[d][group]
}

// touches reports whether a pack manifest is not whole.
func (h *harm) touches(d digest.Digest) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, bad := h.manifests[d]; bad || len(h.groups[d]) > 0 {
		return true
	}
	for _, users := range h.byPack {
		if _, named := users[d]; named {
			return true
		}
	}
	return false
}

// healed takes a blob for sound again.
func (h *harm) healed(d digest.Digest) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.packs, d)
	for m, fault := range h.manifests {
		if fault == d {
			delete(h.manifests, m)
		}
	}
	for m, groups := range h.byPack[d] {
		for _, g := range groups {
			delete(h.groups[m], g)
		}
	}
	delete(h.byPack, d)
}

// blind are the packs of a pack manifest that were found not to be whole while its
// index could not be read: which of its groups that hits is not known.
func (h *harm) blind(d digest.Digest) (out []digest.Digest) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for p, users := range h.byPack {
		if groups, named := users[d]; named && len(groups) == 0 {
			out = append(out, p)
		}
	}
	slices.Sort(out)
	return out
}

// none reports whether nothing was found.
func (h *harm) none() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.manifests)+len(h.packs) == 0
}
