package tree

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWritebackTellsAtTheEndWhatWentWrong(t *testing.T) {
	w := writeback{fd: -1}
	w.wrote(writebackBytes - 1)
	if err := w.wait(); err != nil {
		t.Errorf("too little for a sync: %v", err)
	}
	w.wrote(1)
	if err := w.wait(); !errors.Is(err, unix.EBADF) {
		t.Errorf("sync of no file: %v", err)
	}
	w.wrote(1)
	if err := w.wait(); !errors.Is(err, unix.EBADF) {
		t.Errorf("an earlier error is forgotten: %v", err)
	}
}

func TestWritebackOff(t *testing.T) {
	w := writeback{fd: -1, off: true}
	w.wrote(2 * writebackBytes)
	if err := w.wait(); err != nil {
		t.Errorf("sync though the caller sees to that: %v", err)
	}
}
