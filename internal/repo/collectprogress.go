package repo

// CollectStage is a part of a collection that may take long.
type CollectStage string

// The stages, in their order. A run has those for which there is something to do.
const (
	// CollectLook goes through the snapshots for what they use; it counts snapshots.
	CollectLook CollectStage = "look"
	// CollectRewrite reads packs and stores what of them is used again; it counts
	// bytes that are used.
	CollectRewrite CollectStage = "rewrite"
	// CollectRemove takes pack manifests away; it counts them.
	CollectRemove CollectStage = "remove"
)

// CollectProgress is how far a stage is: Done of Total.
type CollectProgress struct {
	Stage       CollectStage
	Done, Total int64
}

// counter tells of one stage. One that is nil tells nobody.
type counter struct {
	tell func(CollectProgress)
	now  CollectProgress
}

// newCounter begins a stage; tell may be nil.
func newCounter(tell func(CollectProgress), stage CollectStage, total int64) *counter {
	if tell == nil {
		return nil
	}
	c := &counter{tell, CollectProgress{Stage: stage, Total: total}}
	c.add(0)
	return c
}

func (c *counter) add(n int64) {
	if c != nil {
		c.now.Done += n
		c.tell(c.now)
	}
}
