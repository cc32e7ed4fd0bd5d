package memstore_test

import (
	"testing"

	"lifeboat/internal/store"
	"lifeboat/internal/store/memstore"
	"lifeboat/internal/store/storetest"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(*testing.T) store.Store { return memstore.New() })
}
