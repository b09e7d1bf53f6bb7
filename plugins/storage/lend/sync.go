package lend

import (
	"fmt"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
)

// sync makes f durable on one of the directory's slots and asks the canary afterwards: ⚗ after a journal abort
// fdatasync returns 0 for files whose bytes are gone, and only the canary tells (§3).
func (d *Dir) sync(f vfs.File) error {
	d.syncs <- struct{}{}
	err := f.Sync()
	<-d.syncs
	if err != nil {
		return fmt.Errorf("fdatasync: %w", err)
	}
	d.mu.Lock()
	canary, fence := d.canary, d.fence
	d.mu.Unlock()
	if fence != nil {
		return fmt.Errorf("fenced during the sync: %w", fence)
	}
	if err := d.fs.Probe(canary); err != nil {
		return fmt.Errorf("canary: %w", err)
	}
	return nil
}
