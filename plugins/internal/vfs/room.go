package vfs

import "golang.org/x/sys/unix"

var _ Room = osFS{}

func (osFS) Volume(path string) (Volume, error) {
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Statfs(path, &st) }); err != nil {
		return Volume{}, pathError("statfs", path, err)
	}
	block := int64(st.Bsize)
	return Volume{
		Size: int64(st.Blocks) * block, Free: int64(st.Bavail) * block,
		Volatile: int64(st.Type) == unix.TMPFS_MAGIC || int64(st.Type) == unix.RAMFS_MAGIC,
	}, nil
}

func (osFS) Allocate(f File, size int64) error {
	err := retry(func() error { return unix.Fallocate(f.Fd(), 0, 0, size) })
	return pathError("fallocate", "", err)
}
