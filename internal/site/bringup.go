package site

import (
	"encoding/json"
	"fmt"

	"lifeboat/internal/dr"
)

const (
	bringupFile = "bringup.json"
	// bringupFormat is the version that this code writes and reads.
	bringupFormat = 1
)

// Bringup records how a system was brought up at this site: which objects of
// the engine Lifeboat created or took over, and how the site's overrides
// changed them. A snapshot taken here translates back, so that the overrides
// of a stand-in do not travel to the main site.
type Bringup struct {
	// Format is set by SetBringup.
	Format   int           `json:"format"`
	Snapshot dr.SnapshotID `json:"snapshot"`
	Epoch    dr.Epoch      `json:"epoch"`
	// Containers, by local name.
	Containers map[string]BroughtContainer `json:"containers"`
	Networks   map[string]BroughtNetwork   `json:"networks"` // by local name
	Volumes    map[string]string           `json:"volumes"`  // local name to original name
	Binds      map[string]string           `json:"binds"`    // local path to original path
	Files      map[string]string           `json:"files"`    // local path to original path
}

// BroughtContainer is one container as it was captured and as it is here.
type BroughtContainer struct {
	ID       string       `json:"id"`
	Original dr.Container `json:"original"`
	// Local is the container as discovered right after its creation: as long as
	// discovery gives the same, nobody has changed it here.
	Local json.RawMessage `json:"local"`
}

// BroughtNetwork is one network as it was captured and as it is here.
type BroughtNetwork struct {
	Original dr.Network      `json:"original"`
	Local    json.RawMessage `json:"local"`
}

// Bringup returns the record of a system, nil when it was not brought up here.
// One that is damaged or of a later version is an error: without it the site's
// overrides would go into the next snapshot as if they were the system's own.
func (s *State) Bringup(sys dr.System) (*Bringup, error) {
	var b Bringup
	ok, err := s.load(sys, bringupFile, &b)
	if err == nil && ok && b.Format != bringupFormat {
		err = fmt.Errorf("local state %s of system %s is of format %d, this version of Lifeboat knows %d", bringupFile, sys, b.Format, bringupFormat)
	}
	if err != nil {
		return nil, fmt.Errorf("how system %s was brought up here cannot be told: %w; use the newest Lifeboat, or move the file away: then this site's overrides count as the system's own", sys, err)
	}
	if !ok {
		return nil, nil
	}
	return &b, nil
}

// SetBringup replaces the record, durably.
func (s *State) SetBringup(sys dr.System, b *Bringup) error {
	b.Format = bringupFormat
	return s.save(sys, bringupFile, b)
}
