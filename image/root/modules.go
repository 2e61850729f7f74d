package root

// There is no modprobe and nothing answers the kernel when it asks for a module, so
// what it would ask for at run time is loaded once, before module loading is
// closed. What is not here cannot be loaded.

// initramfsModules are for finding and reading the medium, and for the root.
func initramfsModules(flavour string) []choice {
	list := []choice{
		{"squashfs", "the root's file system", false},
		{"loop", "the root's file in RAM as a block device", false},
		{"overlay", "the writable layer above the root", false},
		{"sd_mod", "disks that speak SCSI: SATA, SAS, USB, virtio", false},
		{"sr_mod", "CD drives, real ones and those of management controllers", false},
		{"ahci", "SATA", true},
		{"ata_piix", "older SATA and IDE; the CD of many virtual machines", true},
		{"ata_generic", "IDE that no other driver knows", true},
		{"virtio_blk", "disks of KVM", true},
		{"virtio_scsi", "disks and CDs of KVM", true},
		{"hv_storvsc", "disks and CDs of Hyper-V and Azure", true},
		{"vmw_pvscsi", "disks of VMware", true},
		{"xen_blkfront", "disks of Xen", true},
		{"mpi3mr", "Broadcom's SAS controllers of 2020 and later", true},
	}
	if flavour == VM {
		return list // this kernel has NVMe built in, and no USB
	}
	return append(list, []choice{
		{"nvme", "NVMe disks", true},
		{"xhci_pci", "USB 3", true},
		{"ehci_pci", "USB 2", true},
		{"uhci_hcd", "USB 1, by which management controllers show a CD", true},
		{"ohci_pci", "USB 1, the other kind", true},
		{"usb_storage", "USB sticks, and CDs that management controllers show", true},
		{"uas", "USB sticks that speak SCSI", true},
		{"megaraid_sas", "Broadcom's and Dell's RAID controllers", true},
		{"mpt3sas", "Broadcom's SAS controllers", true},
		{"smartpqi", "Microchip's and HPE's RAID controllers", true},
		{"hpsa", "HPE's RAID controllers before those", true},
		{"aacraid", "Adaptec's RAID controllers", true},
	}...)
}

// rootModules are for the running server.
func rootModules(flavour string) []choice {
	list := []choice{
		{"tun", "tunnel devices of OpenVPN without offload", false},
		{"ovpn", "OpenVPN's data channel", false},
		{"xfrm_user", "charon tells the kernel about ESP", false},
		{"xfrm_interface", "the device that customers' packets come out of", false},
		{"esp4", "ESP", false},
		{"esp6", "ESP", false},
		{"gcm", "AES-GCM, for ESP and OpenVPN", false},
		{"ctr", "the same", false},
		{"aesni_intel", "AES in the processor", false},
		{"chacha20poly1305", "OpenVPN for customers whose processor has no AES", false},
		{"authenc", "AES-CBC with SHA-2, Apple's default for ESP", false},
		{"authencesn", "the same with extended sequence numbers", false},
		{"echainiv", "initialisation vectors of AES-CBC", false},
		{"seqiv", "initialisation vectors of AES-GCM", false},
		{"nf_tables", "the firewall", false},
		{"nf_conntrack", "connection tracking", false},
		{"nf_conntrack_netlink", "connections of a session are forgotten with it", false},
		{"nft_ct", "rules: state of a connection, notrack, marks", false},
		{"nft_chain_nat", "chains of type nat", false},
		{"nft_masq", "rules: masquerade", false},
		{"nft_redir", "rules: redirect to one of several OpenVPN processes", false},
		{"nft_hash", "rules: which of them", false},
		{"nft_reject_inet", "rules: reject", false},
		{"nft_limit", "rules: how often the activation port may be asked", false},
		{"nft_fib_inet", "rules: is an address local", false},
		{"virtio_net", "network of KVM", true},
		{"vmxnet3", "network of VMware", true},
		{"hv_netvsc", "network of Hyper-V and Azure", true},
		{"xen_netfront", "network of Xen", true},
		{"ena", "network of Amazon", true},
		{"gve", "network of Google", true},
		{"idpf", "network of Google's newer machines", true},
		{"ixgbevf", "part of an Intel card, given to a virtual machine", true},
		{"mlx4_en", "NVIDIA's ConnectX-3, part of one included", true},
		{"mlx5_core", "NVIDIA's ConnectX-4 and later, parts of one included", true},
		{"mana", "network of Azure's newer machines", true},
		{"ionic", "AMD Pensando", true},
		{"virtio_rng", "random numbers of the hypervisor", true},
	}
	if flavour == VM {
		return append(list, choice{"i6300esb", "the watchdog of KVM", true})
	}
	return append(list, []choice{
		{"e1000e", "Intel, 1 Gbit/s", true},
		{"igb", "Intel, 1 Gbit/s, servers", true},
		{"igc", "Intel, 2.5 Gbit/s", true},
		{"ixgbe", "Intel, 10 Gbit/s", true},
		{"i40e", "Intel, 10 to 40 Gbit/s", true},
		{"iavf", "part of an Intel card", true},
		{"ice", "Intel, 25 to 200 Gbit/s", true},
		{"tg3", "Broadcom, 1 Gbit/s", true},
		{"bnxt_en", "Broadcom, 10 to 400 Gbit/s", true},
		{"r8169", "Realtek, 1 to 5 Gbit/s", true},
		{"atlantic", "Marvell, 10 Gbit/s", true},
		{"sfc", "AMD Solarflare", true},
		{"be2net", "Emulex, 10 Gbit/s", true},
		{"enic", "Cisco", true},
		{"iTCO_wdt", "the watchdog of Intel's chipsets", true},
		{"sp5100_tco", "the watchdog of AMD's chipsets", true},
		{"hpwdt", "the watchdog of HPE's servers", true},
		{"i6300esb", "the watchdog of KVM", true},
	}...)
}
