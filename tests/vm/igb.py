# Changes QEMU 10.0 hw/net/igb_core.c (argument) and e1000x_common.c beside it, so that the emulated 82576 timestamps as the real one does:
# RX stamps for every PTPv2 event message, Ethernet and UDP/IPv4 port 319; reading RXSTMPH opens the latch again (what Linux relies on);
# the PHC stays continuous when its rate changes.
import sys


def change(text, old, new):
    if old not in text:
        sys.exit(f"this is another igb than QEMU 10.0's: it has no\n{old}")
    return text.replace(old, new, 1)


p = sys.argv[1]
s = open(p).read()
s = change(s, '''                ptp2.message_id_transport_specific == ((core->mac[TSYNCRXCFG] >> 8) & 255)) {''',
'''                igb_ptp_msg_match(core, ptp2.message_id_transport_specific)) {''')
s = change(s, '''static uint16_t igb_receive_assign(IGBCore *core, const struct iovec *iov,
                                   size_t iovcnt, size_t iov_ofs,
                                   const L2Header''','''static bool igb_ptp_msg_match(IGBCore *core, uint8_t id)
{
    if ((core->mac[TSYNCRXCTL] & E1000_TSYNCRXCTL_TYPE_MASK) ==
        E1000_TSYNCRXCTL_TYPE_EVENT_V2) {
        return (id & 15) < 8;
    }
    return id == ((core->mac[TSYNCRXCFG] >> 8) & 255);
}

static bool igb_ptp_l4(IGBCore *core, const struct iovec *iov, size_t iovcnt,
                       size_t ofs, uint16_t proto, PTP2 *ptp2)
{
    uint32_t type = core->mac[TSYNCRXCTL] & E1000_TSYNCRXCTL_TYPE_MASK;
    uint8_t ip[20], udp[8];
    size_t hl;

    if (!(core->mac[TSYNCRXCTL] & E1000_TSYNCRXCTL_ENABLED) ||
        (core->mac[TSYNCRXCTL] & E1000_TSYNCRXCTL_VALID) ||
        (type != E1000_TSYNCRXCTL_TYPE_EVENT_V2 &&
         type != E1000_TSYNCRXCTL_TYPE_L2_L4_V2) || proto != ETH_P_IP) {
        return false;
    }
    ofs += ETH_HLEN;
    if (iov_to_buf(iov, iovcnt, ofs, ip, sizeof(ip)) < sizeof(ip)) {
        return false;
    }
    hl = (ip[0] & 15) * 4;
    if ((ip[0] >> 4) != 4 || hl < 20 || ip[9] != 17 ||
        iov_to_buf(iov, iovcnt, ofs + hl, udp, sizeof(udp)) < sizeof(udp) ||
        lduw_be_p(udp + 2) != 319 ||
        iov_to_buf(iov, iovcnt, ofs + hl + 8, ptp2, sizeof(*ptp2)) <
        sizeof(*ptp2)) {
        return false;
    }
    return (ptp2->version_ptp & 15) == 2 &&
           igb_ptp_msg_match(core, ptp2->message_id_transport_specific);
}

static uint16_t igb_receive_assign(IGBCore *core, const struct iovec *iov,
                                   size_t iovcnt, size_t iov_ofs,
                                   const L2Header''')
s = change(s, '''    if (vlan_num &&
        !e1000x_rx_vlan_filter(''','''    if (!*ts && igb_ptp_l4(core, iov, iovcnt, iov_ofs,
                           be16_to_cpu(ehdr->h_proto), &ptp2)) {
        e1000x_timestamp(core->mac, core->timadj, RXSTMPL, RXSTMPH);
        *ts = true;
        core->mac[TSYNCRXCTL] |= E1000_TSYNCRXCTL_VALID;
        core->mac[RXSATRL] = le32_to_cpu(ptp2.source_uuid_lo);
        core->mac[RXSATRH] = le16_to_cpu(ptp2.source_uuid_hi) |
                             (le16_to_cpu(ptp2.sequence_id) << 16);
    }

    if (vlan_num &&
        !e1000x_rx_vlan_filter(''')
s = change(s, '''static uint32_t igb_get_txstmph(''','''static uint32_t igb_get_rxstmph(IGBCore *core, int index)
{
    core->mac[TSYNCRXCTL] &= ~E1000_TSYNCRXCTL_VALID;
    return core->mac[RXSTMPH];
}

static uint32_t igb_get_txstmph(''')
s = change(s, '''    igb_getreg(RXSTMPH),\n''','')
s = change(s, '''    [RXSATRH] = igb_get_rxsatrh,''','''    [RXSATRH] = igb_get_rxsatrh,
    [RXSTMPH] = igb_get_rxstmph,''')
open(p, 'w').write(s)
# second file: keep the clock continuous when its rate changes (10.0 adds where it must subtract and loses the sign)
q = p.replace('igb_core.c', 'e1000x_common.c')
s = open(q).read()
s = change(s, '''    *timadj += (muldiv64(ns, incvalue, incperiod) - muldiv64(ns, old_incvalue, old_incperiod)) / 16;''',
'''    *timadj -= (int64_t)(muldiv64(ns, incvalue, incperiod * 16) -
                         muldiv64(ns, old_incvalue, old_incperiod * 16));''')
open(q, 'w').write(s)
