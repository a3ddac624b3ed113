/**
 * Text in the language of the page. English is the source: its text is the key
 * of the translations in zh-CN.js, which is loaded only where it is spoken.
 */
export const chinese = document.documentElement.lang === 'zh-CN'
const words = chinese ? (await import('./zh-CN.js')).default : {}

/**
 * English text in the page's language. Each %s, or %[2]s where a translation
 * has another order, is the next argument.
 */
export function t(english, ...args) {
  return fill(words[english] ?? english, args)
}

function fill(text, args) {
  let next = 0
  return text.replace(/%(?:\[(\d)\])?s/g, (_, n) => args[n ? n - 1 : next++])
}

/**
 * What another program said in English, translated where forms, an object of
 * English forms and their translations, has its form.
 */
export function said(text, forms) {
  for (const [english, translated] of Object.entries(forms)) {
    const form = english.replace(/[.*+?^${}()|[\]\\]/g, '\\$&').replaceAll('%s', '(.+?)')
    const gaps = text.match(new RegExp(`^${form}$`))
    if (gaps) return fill(translated, gaps.slice(1))
  }
  return text
}
